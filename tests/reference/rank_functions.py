"""What the two-process tests of tests/test_distributed.py run in each rank."""

import torch

from lvmmed import distributed
from lvmmed.engine.batch_norm import share_batch_norm


def nonlinear_loss(rows, gathered):
    """Mean over `rows` of a function in which every gathered row takes part."""
    return (rows @ gathered.T).pow(2).mean(1).mean()


def gather_loss(all_rows):
    """Value and gradient of this rank's rows; the loss is the mean over ranks."""
    rows = all_rows[distributed.local_slice(len(all_rows))].clone().requires_grad_()
    loss = nonlinear_loss(rows, distributed.all_gather(rows))
    loss.backward()
    return {
        "loss": distributed.all_reduce_mean(loss.detach()),
        "gradient": rows.grad / distributed.world_size(),
    }


def standardised_loss(all_rows, weights):
    """Rows centred and scaled by statistics of all ranks, then a weighted cube."""
    own = distributed.local_slice(len(all_rows))
    rows = all_rows[own].clone().requires_grad_()
    mean, variance = distributed.mean_and_var(rows)
    loss = (((rows - mean) / (variance + 0.1).sqrt()).pow(3) * weights[own]).mean()
    loss.backward()
    return {
        "mean": mean.detach(),
        "variance": variance.detach(),
        "loss": distributed.all_reduce_mean(loss.detach()),
        "gradient": rows.grad / distributed.world_size(),
    }


def averaged_gradients(all_rows):
    """Gradients of a small layer, averaged over ranks; one parameter has none."""
    layer = torch.nn.Linear(all_rows.shape[1], 2)
    torch.nn.init.constant_(layer.weight, 0.3)
    torch.nn.init.constant_(layer.bias, 0.1)
    unused = torch.nn.Parameter(torch.zeros(1))
    rows = all_rows[distributed.local_slice(len(all_rows))]
    layer(rows).pow(3).mean().backward()
    distributed.average_gradients([*layer.parameters(), unused])
    return [layer.weight.grad, layer.bias.grad, unused.grad]


def convolutional_step(images, seed):
    """Loss, averaged gradients and buffers of a small net with shared batch normalisation."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3)
    )
    if distributed.world_size() > 1:
        net = share_batch_norm(net)
    net(images[distributed.local_slice(len(images))]).pow(3).mean().backward()
    distributed.average_gradients(net.parameters())
    state = {k: v.clone() for k, v in net.state_dict().items()}
    return {"gradients": [p.grad for p in net.parameters()], "state": state}
