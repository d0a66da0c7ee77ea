"""Vectors of an image that stand in rows, one a position, picked by number.

Letters used in shapes:
    B: images.
    P: positions of an image, such as the regions of a feature map or its patches.
    M: positions that are picked.
    D: numbers of a vector.
"""

from jaxtyping import Float, Int64
from torch import Tensor


def take_positions(
    vectors: Float[Tensor, "B P D"], index: Int64[Tensor, "B M"]
) -> Float[Tensor, "B M D"]:
    """Pick positions of each image by number.

    Args:
        vectors: one a position.
        index: numbers of those to pick, in this order.

    Returns:
        Their vectors.
    """
    # an expanded view; torch's take_along_dim would work on every number of it first
    return vectors.gather(1, index.unsqueeze(2).expand(-1, -1, vectors.shape[2]))
