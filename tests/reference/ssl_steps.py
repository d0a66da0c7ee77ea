"""A few steps of training of a method on a fixed batch."""

import torch
from reference.ssl_batches import build_method, make_views, small_backbone

from lvmmed.ssl.table import METHODS


def losses_of_steps(
    name,
    fields,
    *,
    num=8,
    num_steps=3,
    num_small=0,
    backbone_name="test_efficientnet",
    steps_per_epoch=1,
):
    """Loss of each step, with plain gradient descent and the method's own update in between."""
    views = list(make_views(num, num_small=num_small))
    backbone = small_backbone(name=backbone_name)
    method = build_method(
        name,
        fields,
        backbone,
        num_images=num,
        num_small=num_small,
        steps_per_epoch=steps_per_epoch,
    )
    if METHODS[name].needs_memory:
        with torch.no_grad():
            features = method.encode(backbone, views[:2], generator=torch.Generator())
            method.remember(views[:2], features)
    parameters = [p for p in (*backbone.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    losses = []
    for step in range(num_steps):
        generator = torch.Generator().manual_seed(step)
        features = method.encode(backbone, views, generator=generator)
        output = method.training_loss(views, features, step=step, generator=generator)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        method.after_step(step, backbone)
        losses.append(float(output.total.detach()))
    return losses
