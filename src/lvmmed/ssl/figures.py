"""Figures that say how well a method tells images apart.

Letters used in shapes:
    B: images of this process.
    F: features.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lvmmed.distributed import all_gather, rank

TIE_COSINE = 1e-6
"""Cosines that differ by less than this are equal: rounding does not tell images apart."""


@torch.no_grad()
def partner_accuracy(
    first: Float[Tensor, "B F"], second: Float[Tensor, "B F"]
) -> Float[Tensor, ""]:
    """Share of images whose own second view is nearer to their first than any other image's.

    Nearness is the cosine; the others are the second views of all images of all processes.

    Args:
        first: what the method compares of the first views; need not be normalised.
        second: of the second views, same images in the same order.

    Returns:
        Mean over this process's images, in fp32 or better. Guessing gives 1 / images. A tie is
        wrong, so that vectors that are all the same give 0; a single image has no other and
        gives 1; NaN is wrong.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    unit_first = functional.normalize(first.to(dtype), dim=1)
    unit_second = all_gather(functional.normalize(second.to(dtype), dim=1))
    cosines = unit_first @ unit_second.T
    own = torch.arange(len(first), device=first.device) + rank() * len(first)
    partner = cosines.gather(1, own.unsqueeze(1))
    others = cosines.scatter(1, own.unsqueeze(1), float("-inf"))
    return (partner - TIE_COSINE > others).all(1).to(dtype).mean()


@torch.no_grad()
def teacher_agreement(
    students: Sequence[Float[Tensor, "B F"]], teachers: Sequence[Float[Tensor, "B F"]]
) -> Float[Tensor, ""]:
    """Mean cosine of what the student makes of one view and the teacher of the other.

    Args:
        students: of some views; need not be normalised, a zero vector has cosine 0.
        teachers: of the other view of each, same images in the same order.

    Returns:
        Mean over views and this process's images, -1 to 1, in fp32 or better. Near 1 while images
        are told apart as by guessing (`partner_accuracy`) is collapse.
    """
    cosines = [
        functional.cosine_similarity(_exact(student), _exact(teacher), dim=1).mean()
        for student, teacher in zip(students, teachers, strict=True)
    ]
    return torch.stack(cosines).mean()


def _exact(vectors: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
