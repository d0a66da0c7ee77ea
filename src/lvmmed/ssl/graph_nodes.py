"""What one view of a batch gives to the graphs that its images are cut into.

Letters used in shapes:
    B: images of this process, or of all processes once joined.
    F: length of a projection.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvmmed.distributed import all_gather, rank, world_size
from lvmmed.matching.graph import at_least_single
from lvmmed.matching.imle import draw_gumbel
from lvmmed.ssl.partition import Partition, partition_batch
from lvmmed.ssl.regions import Regions


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphNodes:
    """One view of a batch.

    Attributes:
        nodes: projections of the images.
        regions: of their maps; None where only nodes are compared.
    """

    nodes: Float[Tensor, "B F"]
    regions: Regions | None

    def joined(self) -> "GraphNodes":
        """The same for the images of all processes, in order of rank; gradients flow back."""
        regions = self.regions
        if regions is not None:
            regions = Regions(
                features=all_gather(at_least_single(regions.features)),
                centers=all_gather(regions.centers),
            )
        return GraphNodes(nodes=all_gather(self.nodes), regions=regions)


def random_partition(
    num_images: int, graph_size: int, *, generator: torch.Generator, device: torch.device
) -> Partition:
    """Cut the images of all processes into graphs at random; this process gets its share of them.

    Args:
        num_images: images of this process. With several processes a multiple of `graph_size`, so
            that their graphs together are those of one process with all images.
        graph_size: images of a graph, at least 2.
        generator: of the order; in the same state on all processes.
        device: where the partition lies.

    Returns:
        Graphs of this process; `order` counts images of all processes in order of rank.
    """
    order = torch.randperm(
        num_images * world_size(), generator=generator, device=generator.device
    ).to(device, non_blocking=True)
    share = order[rank() * num_images : (rank() + 1) * num_images]
    return partition_batch(num_images, graph_size, device=device, order=share)


def gumbel_like(affinity: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw noise for the graphs of all processes, as many each, and keep this one's share."""
    num_graphs = affinity.shape[0]
    shape = (num_graphs * world_size(), *affinity.shape[1:])
    noise = draw_gumbel(shape, generator=generator, device=affinity.device)
    return noise[rank() * num_graphs : (rank() + 1) * num_graphs]
