"""Cutting a batch into graphs.

Letters used in shapes:
    B: images of this process.
    G: graphs.
    N: nodes of a graph.
    F: length of a feature vector.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """The images of a batch as graphs of equal size, the last one possibly short.

    Attributes:
        num_graphs: G above.
        size: N above, nodes of the largest graph.
        num_matched: images that lie in a graph.
        num_left_over: 1 when a single image remains at the end, else 0.
        mask: which nodes are images; None when all are.
        order: place in the batch of each image, graph by graph; None = as they stand there.
    """

    num_graphs: int
    size: int
    num_matched: int
    num_left_over: int
    mask: Bool[Tensor, "G N"] | None
    order: Int64[Tensor, " B"] | None = None

    def split(self, rows: Float[Tensor, "B *rest"]) -> Float[Tensor, "G N *rest"]:
        """Cut rows, one an image, into graphs; missing nodes are zeros.

        Args:
            rows: of all images of the batch.

        Returns:
            The rows of the images that lie in graphs.
        """
        num_missing = self.num_graphs * self.size - self.num_matched
        if self.order is not None:
            rows = rows[self.order]
        kept = rows[: self.num_matched]
        padding = [0, 0] * (rows.ndim - 1) + [0, num_missing]
        padded = functional.pad(kept, padding)
        return padded.reshape(self.num_graphs, self.size, *rows.shape[1:])


def partition_batch(
    num_images: int,
    graph_size: int,
    *,
    device: torch.device,
    order: Int64[Tensor, " B"] | None = None,
) -> Partition:
    """Cut a batch into chunks of `graph_size` images.

    A shorter rest is a graph of its own. A rest of one image has nothing to be told from and is
    left over.

    Args:
        num_images: images of this process, at least 1.
        graph_size: images of a graph, at least 2.
        device: where the mask lies.
        order: a permutation of the images to put before cutting; None = as they stand.

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
        order=order,
    )


@torch.no_grad()
def similar_order(nodes: Float[Tensor, "B F"], graph_size: int) -> Int64[Tensor, " B"]:
    """Order a batch so that cutting it gives graphs of images that look alike.

    The image that stands first among those without a graph takes the most similar of them (by
    cosine) for its companions, until all have one. Images that look alike are the ones that a
    matching can confuse, as the slices of a volume are. The later graphs get what is left.

    Args:
        nodes: feature vectors.
        graph_size: images of a graph.

    Returns:
        Places in the batch, graph by graph. Nothing waits for the device.
    """
    unit = functional.normalize(nodes.float(), dim=1)
    similarity = unit @ unit.T
    num_images = len(nodes)
    rank = torch.arange(num_images, device=nodes.device)
    is_free = torch.ones(num_images, dtype=torch.bool, device=nodes.device)
    parts = []
    for start in range(0, num_images, graph_size):
        size = min(graph_size, num_images - start)
        first = rank.masked_fill(~is_free, num_images).argmin()
        # the image itself comes first, whatever rounding or a zero vector makes of its cosine
        score = similarity.index_select(0, first.view(1)).squeeze(0).masked_fill(rank == first, 2.0)
        score = score.masked_fill(~is_free, -torch.inf)
        chosen = score.sort(descending=True, stable=True).indices[:size]
        is_free = is_free.index_fill(0, chosen, False)
        parts.append(chosen)
    return torch.cat(parts)
