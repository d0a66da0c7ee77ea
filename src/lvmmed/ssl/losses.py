"""Losses of self-supervised methods as pure functions.

Letters used in shapes:
    B: images of this process.
    F: features.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lvmmed.distributed import all_gather, rank


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveLoss:
    """Result of `nt_xent`.

    Attributes:
        loss: mean over this process's views of both kinds.
        accuracy: share of this process's views whose partner is the most similar of all.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def nt_xent(
    projections_s: Float[Tensor, "B F"],
    projections_t: Float[Tensor, "B F"],
    *,
    temperature: float,
) -> ContrastiveLoss:
    """Contrast each view with all other views of the joined batch (normalised temperature InfoNCE).

    With the 2B normalised projections z of both views, p(i) the other view of the same image:
    loss = mean over i of -log( exp(z_i.z_p(i) / t) / sum over j != i of exp(z_i.z_j / t) ).

    Args:
        projections_s: of the first views; need not be normalised, a zero vector has cosine 0.
        projections_t: of the second views, same images in the same order.
        temperature: t above; small means that the hardest negatives count most.

    Returns:
        Loss and accuracy in fp32 (fp64 for fp64 inputs). For one image in one process there is no
        negative: the loss is 0 and the accuracy 1.

    Source:
        Chen et al. 2020 (SimCLR), equation 1. Negatives come from all processes.
    """
    dtype = torch.promote_types(projections_s.dtype, torch.float32)
    unit_s = functional.normalize(projections_s.to(dtype), dim=1)
    unit_t = functional.normalize(projections_t.to(dtype), dim=1)
    own = torch.cat([unit_s, unit_t])
    every_s, every_t = all_gather(unit_s), all_gather(unit_t)
    similarity = own @ torch.cat([every_s, every_t]).T / temperature  # [2B, 2 x all images]
    here = torch.arange(len(unit_s), device=own.device) + rank() * len(unit_s)
    num_images = len(every_s)
    itself = torch.cat([here, here + num_images])
    partner = torch.cat([here + num_images, here])
    similarity = similarity.scatter(1, itself.unsqueeze(1), float("-inf"))
    loss = functional.cross_entropy(similarity, partner)
    accuracy = (similarity.detach().argmax(1) == partner).to(dtype).mean()
    return ContrastiveLoss(loss=loss, accuracy=accuracy)
