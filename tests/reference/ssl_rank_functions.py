"""What the two-process tests of tests/ssl run in each rank."""

import dataclasses
from unittest.mock import patch

import torch
from reference.ssl_batches import build_method, small_backbone

from lvmmed import distributed
from lvmmed.engine.batch_norm import share_batch_norm
from lvmmed.ssl.figures import partner_accuracy
from lvmmed.ssl.table import METHODS
from lvmmed.ssl.variance_covariance import VicregWeights, vicreg


@patch.object(torch.Tensor, "float", torch.Tensor.double)  # heads raise features to single
def method_loss(name, fields, views, backbone_name):
    """Loss, gradients and state after two steps of a method on this rank's rows of a batch.

    In double precision: in single, the order of a sum decides on which side of a ReLU's kink a
    feature falls, and gradients differ by percents on one processor and not on another.
    """
    views = [dataclasses.replace(view, images=view.images.double()) for view in views]
    backbone = small_backbone(name=backbone_name)
    num_small = len(views) - 2
    method = build_method(name, fields, backbone, num_images=len(views[0]), num_small=num_small)
    model = torch.nn.ModuleDict({"backbone": backbone, "method": method}).double()
    share_batch_norm(model)
    own = distributed.local_slice(len(views[0]))
    mine = [view[own] for view in views]
    if METHODS[name].needs_memory:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            method.remember(mine[:2], method.encode(backbone, mine[:2], generator=generator))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.05)
    losses, gradients = [], []
    for step in range(2):
        features = method.encode(backbone, mine, generator=torch.Generator().manual_seed(step))
        output = method.training_loss(
            mine, features, step=step, generator=torch.Generator().manual_seed(7 + step)
        )
        optimizer.zero_grad()
        output.total.backward()
        distributed.average_gradients(parameters)
        losses.append(distributed.all_reduce_mean(output.total.detach()))
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        optimizer.step()
        method.after_step(step, backbone)
    return {"losses": losses, "gradients": gradients, "state": method.state_dict()}


def method_losses(cases):
    """`method_loss` of several cases by name, as starting processes costs more than a case."""
    answers = {}
    for case, arguments in cases.items():
        try:
            answers[case] = method_loss(*arguments)
        except Exception as error:
            raise RuntimeError(f"case {case!r}") from error
    return answers


def partner_accuracy_of_rows(first, second):
    """Partner accuracy of this rank's rows of a batch."""
    own = distributed.local_slice(len(first))
    return partner_accuracy(first[own], second[own])


def vicreg_of_rows(first, second, weights):
    """VICReg's parts and the gradient, for this rank's rows of a batch."""
    own = distributed.local_slice(len(first))
    mine = [rows[own].clone().requires_grad_() for rows in (first, second)]
    parts = vicreg(*mine, weights=VicregWeights(**weights))
    total = distributed.all_reduce_mean(torch.stack(list(parts.values())).sum())
    total.backward()
    # the loss of the run is the mean over ranks, as `average_gradients` has it
    gradients = [rows.grad / distributed.world_size() for rows in mine]
    averaged = {name: distributed.all_reduce_mean(part.detach()) for name, part in parts.items()}
    return {"parts": averaged, "gradients": gradients}
