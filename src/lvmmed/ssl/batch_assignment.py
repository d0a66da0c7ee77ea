"""First-order matching of a whole batch: each image is told from all others, without edges.

Letters used in shapes:
    M: matchings, each of its own pair of views.
    B: images of this process.
    A: images of all processes.
    F: length of a projection.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvmmed.distributed import all_gather
from lvmmed.matching.affinity import global_affinity
from lvmmed.matching.graph import Problem
from lvmmed.matching.imle import draw_gumbel, matching_loss
from lvmmed.ssl.noise_free import affinity_std_of_graphs, solve_noise_free


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchAssignment:
    """What the assignments of a batch give.

    Attributes:
        loss: twice the share of wrong images, the mean over matchings; carries the gradient.
        accuracy: share of images assigned right in each matching, under noise and margin.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, " M"]


def batch_assignment_loss(
    nodes_s: Float[Tensor, "M B F"],
    nodes_t: Float[Tensor, "M B F"],
    *,
    size: int,
    noise: float,
    is_relative: bool,
    margin: float,
    num_samples: int,
    generator: torch.Generator,
) -> BatchAssignment:
    """Assign the images of one view to those of the other by cosines under noise and margin.

    A graph of 16 tells an image from 15 others; an encoder that has learnt that much has nothing
    left to learn from it. The assignment of the whole batch (of all processes) goes on being hard.
    It is a matching without edges, hence linear and solved exactly, and has the same loss and
    gradient as the matching of graphs, divided by the number of images.

    Args:
        nodes_s: projections of the first view of each matching.
        nodes_t: projections of its second view, in the same order.
        size: images assigned at once; a larger batch is cut, as the time grows with the cube.
        noise: scale of the Gumbel noise on the cosines.
        is_relative: the scale counts in standard deviations of the cosines.
        margin: taken off the cosines of the true pairs.
        num_samples: draws of the noise, each solved.
        generator: of the noise; in the same state on all processes.

    Returns:
        Loss and accuracy over the joined batch, the same on every process.

    Source:
        Paper equations 4 to 6 without edges. Matching a whole batch is ours.
    """
    joined = [
        torch.split(all_gather(nodes.transpose(0, 1)).transpose(0, 1), size, dim=1)
        for nodes in (nodes_s, nodes_t)
    ]
    num_matchings, num_images = len(nodes_s), 0
    loss, num_right = nodes_s.new_zeros(()), nodes_s.new_zeros(num_matchings)
    for part_s, part_t in zip(*joined, strict=True):
        affinity = global_affinity(part_s, part_t)
        problem = Problem.of_nodes(affinity).repeated(num_samples)
        gumbel = draw_gumbel(
            problem.vertex_affinity.shape, generator=generator, device=affinity.device
        )
        if is_relative:
            gumbel = affinity_std_of_graphs(problem).nan_to_num().view(-1, 1, 1) * gumbel
        result = matching_loss(
            torch.nan_to_num(problem.vertex_affinity),
            problem.edge_affinity,
            problem.neighbors_s,
            problem.neighbors_t,
            noise=noise,
            margin=margin,
            lambda_=math.inf,
            vertex_noise=gumbel,
        )
        num_nodes = part_s.shape[1]
        num_wrong = result.hamming.view(num_samples, num_matchings).mean(0) / 2
        loss = loss + num_nodes * result.loss
        num_right = num_right + num_nodes - num_wrong
        num_images += num_nodes
    return BatchAssignment(loss=loss / num_images, accuracy=num_right / num_images)


def noise_free_assignment_accuracy(
    nodes_s: Float[Tensor, "B F"], nodes_t: Float[Tensor, "B F"]
) -> float:
    """Share of the images that the assignment without noise gets right.

    Args:
        nodes_s: projections of the first view.
        nodes_t: projections of the second view, in the same order.

    Returns:
        1 / B is chance, also where all projections are the same.
    """
    problem = Problem.of_nodes(global_affinity(nodes_s.unsqueeze(0), nodes_t.unsqueeze(0)))
    return solve_noise_free(problem, restarts=1, iterations=0).accuracy
