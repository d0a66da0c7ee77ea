"""What the two-process tests of tests/ssl run in each rank."""

import torch

from lvmmed import distributed
from lvmmed.models.backbones import Features
from lvmmed.ssl.table import METHODS


def method_loss(name, fields, views, maps, noise_seed):
    """Loss and gradients of a method on this rank's rows of a batch of feature maps."""
    row = METHODS[name]
    width = maps[0].shape[1]
    config = row.config.model_validate({"name": name, **fields})
    method = row.build(config, width, torch.Generator().manual_seed(0))
    own = distributed.local_slice(len(maps[0]))
    leaves = [one[own].clone().requires_grad_() for one in maps]
    features = [Features(map=leaf, pooled=leaf.mean((2, 3))) for leaf in leaves]
    output = method.training_loss(
        [one[own] for one in views],
        features,
        step=3,
        generator=torch.Generator().manual_seed(noise_seed),
    )
    output.total.backward()
    distributed.average_gradients(method.parameters())
    return {
        "loss": distributed.all_reduce_mean(output.total.detach()),
        "parameters": [p.grad for p in method.parameters()],
        "maps": [leaf.grad / distributed.world_size() for leaf in leaves],
    }
