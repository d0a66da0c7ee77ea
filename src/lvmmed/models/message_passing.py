"""Graph convolution over nearest neighbours.

Letters used in shapes:
    B: graphs.
    N: nodes of a graph.
    K: neighbours of a node.
    F: features of a node.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from lvmmed.models.initialization import seeded


class MessagePassing(nn.Module):
    """Let every node take up what its neighbours look like.

    H_l = relu(D^-1/2 (A + I) D^-1/2 H_(l-1) W_l + b_l), without the relu in the last layer, where
    A is the directed adjacency (row i marks the neighbours of i) and D the row sums of A + I.

    Source:
        Paper section 3.2.1, equation 1 (Kipf and Welling's GCN). Differs from the print, which
        takes the degree of A alone; of A + I here, as in GCN. The paper names no activation: relu
        between the layers, none after the last, which would force cosines to be positive. The
        residual is not in the paper; without it nodes smooth together and nothing is learnt.
    """

    def __init__(
        self,
        width: int,
        *,
        num_layers: int = 2,
        residual: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.residual = residual
        with seeded(generator):
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(
        self, nodes: Float[Tensor, "B N F"], neighbors: Int64[Tensor, "B N K"]
    ) -> Float[Tensor, "B N F"]:
        """Pass messages along the edges of each graph.

        Args:
            nodes: features of the nodes.
            neighbors: index of each node's neighbours, -1 where there is none; a node without
                neighbours hears itself only.

        Returns:
            New features of the nodes; with `residual`, added to the old ones.
        """
        adjacency = normalized_adjacency(neighbors, dtype=nodes.dtype)
        hidden = nodes
        for index, layer in enumerate(self.layers):
            hidden = layer(adjacency @ hidden)
            if index + 1 < len(self.layers):
                hidden = functional.relu(hidden)
        return nodes + hidden if self.residual else hidden


def normalized_adjacency(
    neighbors: Int64[Tensor, "B N K"], *, dtype: torch.dtype
) -> Float[Tensor, "B N N"]:
    """Build D^-1/2 (A + I) D^-1/2 with D the row sums of A + I.

    Args:
        neighbors: index of each node's neighbours, -1 where there is none.
        dtype: type of the result.

    Returns:
        Entry [b, i, j] is the weight with which node i hears node j.
    """
    present = (neighbors >= 0).to(dtype)
    num_nodes = neighbors.shape[1]
    adjacency = present.new_zeros(neighbors.shape[0], num_nodes, num_nodes)
    adjacency = adjacency.scatter_add(2, neighbors.clamp(min=0), present)
    scale = (present.sum(2) + 1).rsqrt()
    own = torch.eye(num_nodes, dtype=dtype, device=neighbors.device)
    return scale.unsqueeze(2) * (adjacency + own) * scale.unsqueeze(1)
