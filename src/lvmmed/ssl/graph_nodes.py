"""What one view of a batch gives to the graphs that its images are cut into.

Letters used in shapes:
    B: images of this process, or of all processes once joined.
    F: length of a projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvmmed.augment.rows import map_tensors
from lvmmed.augment.views import Views
from lvmmed.distributed import all_gather, rank, world_size
from lvmmed.matching.affinity import Directions, directions_of
from lvmmed.matching.imle import draw_gumbel
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector
from lvmmed.ssl.partition import Partition, partition_batch
from lvmmed.ssl.regions import regions_of
from lvmmed.uploads import upload


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphNodes:
    """One view of a batch.

    Attributes:
        nodes: projections of the images.
        regions: of their maps, once for all graphs that they come into; None where only nodes are
            compared.
    """

    nodes: Float[Tensor, "B F"]
    regions: Directions | None

    def joined(self) -> "GraphNodes":
        """The same for the images of all processes, in order of rank; gradients flow back."""
        return map_tensors(self, all_gather)


def nodes_of_view(
    view: Views,
    features: Features,
    projector: Projector,
    *,
    has_regions: bool,
    shares: Sequence[float] | None,
) -> GraphNodes:
    """Project a view, and prepare the regions of its map where they are to be compared.

    Args:
        view: of the images; says where their regions lie.
        features: of the view.
        projector: of pooled features.
        has_regions: whether regions are compared.
        shares: where positions of the map lie, as `regions_of` takes them.

    Returns:
        Nodes of this process's images.
    """
    directions = None
    if has_regions:
        regions = regions_of(view, features, shares)
        directions = directions_of(regions.features, regions.centers, is_half=features.is_half)
    return GraphNodes(nodes=projector(features.pooled.float()), regions=directions)


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
    drawn = torch.randperm(num_images * world_size(), generator=generator, device=generator.device)
    order = upload(drawn, device)
    share = order[rank() * num_images : (rank() + 1) * num_images]
    return partition_batch(num_images, graph_size, device=device, order=share)


def gumbel_like(affinity: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw noise for the graphs of all processes, as many each, and keep this one's share."""
    num_graphs = affinity.shape[0]
    shape = (num_graphs * world_size(), *affinity.shape[1:])
    noise = draw_gumbel(shape, generator=generator, device=affinity.device)
    return noise[rank() * num_graphs : (rank() + 1) * num_graphs]
