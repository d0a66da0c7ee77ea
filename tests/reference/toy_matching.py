"""A toy to learn by matching: an MLP must undo what differs between two views of a sample.

A view is x = tanh([u, nuisance * c] W) + 0.05 * noise: u is the sample's own and shared by its
views, c is drawn anew for every view (numbers only, no package code).
"""

import torch
import torch.nn.functional as F
from reference.matching_instances import nearest, of_neighbors

WIDTH = 16
"""Length of u and of c."""

VIEW_WIDTH = 128
"""Length of a view."""


class Toy:
    """Draws samples; the mixing matrix W is the same in all toys."""

    def __init__(self, nuisance):
        generator = torch.Generator().manual_seed(0)
        self.nuisance = nuisance
        self.mixing = torch.randn(2 * WIDTH, VIEW_WIDTH, generator=generator)
        self.mixing /= (2 * WIDTH) ** 0.5

    def views(self, num_samples, generator):
        def draw(width):
            return torch.randn(num_samples, width, generator=generator)

        own = draw(WIDTH)
        return [
            torch.tanh(torch.cat([own, self.nuisance * draw(WIDTH)], 1) @ self.mixing)
            + 0.05 * draw(VIEW_WIDTH)
            for _ in range(2)
        ]


def make_encoder(seed):
    """Three linear layers with their usual start, drawn without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(VIEW_WIDTH, 256),
            torch.nn.ReLU(),
            torch.nn.Linear(256, 256),
            torch.nn.ReLU(),
            torch.nn.Linear(256, 64),
        )


def affinities(nodes_s, nodes_t, *, edge_weight, k=5):
    """Cosines after one round of averaging over neighbours, as in `matching_instances`."""
    smooth, graphs, directions = [], [], []
    for nodes in (nodes_s, nodes_t):
        neighbors = nearest(nodes.detach(), k)
        mixed = F.normalize(nodes + of_neighbors(nodes, neighbors).mean(2), dim=-1)
        difference = mixed.unsqueeze(2) - of_neighbors(mixed, neighbors)
        smooth.append(mixed)
        graphs.append(neighbors)
        directions.append(F.normalize(difference, dim=-1).flatten(1, 2))
    vertex, edge = (one @ other.transpose(1, 2) for one, other in (smooth, directions))
    return vertex, edge_weight * edge, *graphs


def encode(encoder, views, num_nodes):
    """Unit vectors of both views, samples in graphs of `num_nodes`."""
    return [F.normalize(encoder(view), dim=-1).unflatten(0, (-1, num_nodes)) for view in views]


def train(matching_loss, *, nuisance, num_graphs, num_nodes, edge_weight, num_steps, seed):
    """Train an encoder with Adam; `matching_loss(generator, *affinities)` gives the loss."""
    toy, encoder = Toy(nuisance), make_encoder(seed)
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(num_steps):
        views = encode(encoder, toy.views(num_graphs * num_nodes, generator), num_nodes)
        loss = matching_loss(generator, *affinities(*views, edge_weight=edge_weight))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


@torch.no_grad()
def evaluate(encoder, solve, *, nuisance, num_graphs=8, num_nodes=64):
    """(share of nodes matched right, share whose nearest neighbour is right), on fresh samples.

    `solve(generator, *affinities)` gives permutations.
    """
    generator = torch.Generator().manual_seed(10**6)
    views = Toy(nuisance).views(num_graphs * num_nodes, generator)
    nodes_s, nodes_t = encode(encoder, views, num_nodes)
    truth = torch.arange(num_nodes)
    found = solve(generator, *affinities(nodes_s, nodes_t, edge_weight=0.5))
    nearest_t = (nodes_s @ nodes_t.transpose(1, 2)).argmax(-1)
    return tuple((one == truth).double().mean().item() for one in (found, nearest_t))
