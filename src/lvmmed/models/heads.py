"""Projectors and the batch statistics they share across processes.

Letters used in shapes:
    B: images of this process.
    D: features in.
    F: features out.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvmmed.distributed import mean_and_var
from lvmmed.models.initialization import seeded

VARIANCE_EPS = 1e-5
"""Added to variances before the root, as in torch's batch normalisation."""


def standardize(values: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
    """Shift and scale each feature to mean 0 and variance 1 over the images of all processes.

    The variance is the biased one. A feature that is the same in all images, or a batch of one
    image, becomes zeros.

    Args:
        values: one row an image.

    Returns:
        Standardised values; the gradient takes the statistics into account, across processes too.
    """
    mean, variance = mean_and_var(values)
    return (values - mean) * (variance + VARIANCE_EPS).rsqrt()


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of the batch at hand, over all processes.

    There are no running statistics: projectors are thrown away after pre-training and see whole
    batches only. Works on any device, for a batch of one (zeros), and gives W processes the result
    of one process on the joined batch.
    """

    def __init__(self, width: int, *, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, values: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """Standardise, then scale and shift if `affine`."""
        standard = standardize(values)
        if self.weight is None or self.bias is None:
            return standard
        return standard * self.weight + self.bias


class Projector(nn.Module):
    """Map pooled features to the space where images are compared.

    Source:
        Paper appendix A states only "2048 x 128": one linear layer with `num_hidden` 0 and
        `centering` off. Hidden layers (linear, batch normalisation, relu) are those of SimCLR;
        without `hidden_norm` (linear, relu) those of MoCo v2.
        Losses that a shift does not change have no use for a `final_bias`.
        Centring is ours: without it the cosines of an untrained encoder crowd near 1.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        num_hidden: int = 0,
        hidden_width: int = 2048,
        centering: bool = False,
        hidden_norm: bool = True,
        final_bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = width_in
        with seeded(generator):
            for _ in range(num_hidden):
                # batch normalisation would take a bias away again
                layers.append(nn.Linear(width, hidden_width, bias=not hidden_norm))
                layers += [BatchNorm(hidden_width, affine=True)] if hidden_norm else []
                layers.append(nn.ReLU())
                width = hidden_width
            # centring would take a bias away again, so there is none to train
            layers.append(nn.Linear(width, width_out, bias=final_bias and not centering))
        if centering:
            layers.append(BatchNorm(width_out, affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """Project a batch of feature vectors."""
        projected: Tensor = self.layers(features)
        return projected
