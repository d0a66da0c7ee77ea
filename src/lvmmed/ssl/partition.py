"""Cutting a batch into graphs.

Letters used in shapes:
    B: images of this process.
    G: graphs.
    N: nodes of a graph.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Consecutive images of a batch as graphs of equal size, the last one possibly short.

    Attributes:
        num_graphs: G above.
        size: N above, nodes of the largest graph.
        num_matched: images that lie in a graph.
        num_left_over: 1 when a single image remains at the end, else 0.
        mask: which nodes are images; None when all are.
    """

    num_graphs: int
    size: int
    num_matched: int
    num_left_over: int
    mask: Bool[Tensor, "G N"] | None

    def split(self, rows: Float[Tensor, "B *rest"]) -> Float[Tensor, "G N *rest"]:
        """Cut rows, one an image, into graphs; missing nodes are zeros.

        Args:
            rows: of all images of the batch.

        Returns:
            The rows of the images that lie in graphs.
        """
        num_missing = self.num_graphs * self.size - self.num_matched
        kept = rows[: self.num_matched]
        padding = [0, 0] * (rows.ndim - 1) + [0, num_missing]
        padded = functional.pad(kept, padding)
        return padded.reshape(self.num_graphs, self.size, *rows.shape[1:])


def partition_batch(num_images: int, graph_size: int, *, device: torch.device) -> Partition:
    """Cut a batch into chunks of `graph_size` images.

    A shorter rest is a graph of its own. A rest of one image has nothing to be told from and is
    left over.

    Args:
        num_images: images of this process, at least 1.
        graph_size: images of a graph, at least 2.
        device: where the mask lies.

    Returns:
        The cut; no graphs for a single image.
    """
    num_left_over = int(num_images % graph_size == 1)
    num_matched = num_images - num_left_over
    num_graphs = -(-num_matched // graph_size)
    size = min(graph_size, num_matched)
    mask = None
    if num_graphs * size > num_matched:
        nodes = torch.arange(num_graphs * size, device=device).view(num_graphs, size)
        mask = nodes < num_matched
    return Partition(
        num_graphs=num_graphs,
        size=size,
        num_matched=num_matched,
        num_left_over=num_left_over,
        mask=mask,
    )
