"""LVM-Med: learn by matching the graphs of two views of a batch, with second-order terms.

Letters used in shapes:
    G: graphs of this process.
    N: nodes of a graph.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.distributed import rank, world_size
from lvmmed.matching.affinity import edge_affinity, global_affinity, local_affinity
from lvmmed.matching.graph import Problem, knn_graph
from lvmmed.matching.imle import MatchingLoss, draw_gumbel, matching_loss
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector
from lvmmed.models.message_passing import MessagePassing
from lvmmed.ssl.method import LossOutput, Method, MethodContext
from lvmmed.ssl.noise_free import (
    MatchedGraphs,
    affinity_std,
    sampled_solver_gap,
    solve_noise_free,
)
from lvmmed.ssl.partition import Partition, partition_batch

GUMBEL_STD = math.pi / math.sqrt(6)
"""Standard deviation of Gumbel(0, 1)."""


class LvmMedConfig(MethodConfig):
    """Fields of LVM-Med; the defaults are the recipe `lvm-med`, with the paper's value beside."""

    name: Literal["lvm-med"] = "lvm-med"
    """Row of the table of methods."""
    graph_size: int = Field(16, ge=2)
    """Images of a graph (paper appendix A; best of its figure 5). Chance is 1 / graph_size."""
    neighbors: int = Field(5, ge=1)
    """Out-edges of a node, fewer than graph_size (paper appendix A)."""
    alpha: float = Field(0.8, ge=0, le=1)
    """Weight of the global affinity, the rest is the local one (paper equation 3, table 9)."""
    local_best_frac: float = Field(0.4, gt=0, le=1)
    """Share of the map's positions that enter the local affinity (20 of 49 in VICRegL)."""
    local_keep_all_features: bool = False
    """Keep all positions in the feature branch of the local affinity, as VICRegL does."""
    second_order: bool = True
    """Match edges as well as nodes; off is the paper's ablation "w/o second order"."""
    edge_weight: float = Field(0.2, ge=0)
    """Factor of the edge affinities, 1 / neighbors. Paper 1: 80 edges then outvote 16 nodes."""
    edge_ramp_steps: int = Field(0, ge=0)
    """Steps over which the edge weight grows from 0 linearly; 0 = constant, as in the paper."""
    message_passing: bool = True
    """Two graph convolutions before comparing; off is the paper's ablation."""
    message_passing_layers: int = Field(2, ge=1)
    """Graph convolutions (paper appendix A)."""
    residual: bool = True
    """Add the nodes to what message passing makes of them. Paper: off; then nodes smooth out."""
    centering: bool = True
    """Standardise projections over the batch. Paper: off; then cosines crowd near 1."""
    projection_width: int = Field(128, ge=1)
    """Length of a projection (paper appendix A)."""
    projector_hidden_layers: int = Field(0, ge=0)
    """Hidden layers of the projector; 0 is one linear map (paper appendix A, by its size)."""
    projector_hidden_width: int = Field(2048, ge=1)
    """Width of the hidden layers."""
    noise: float = Field(0.05, ge=0)
    """Scale of the Gumbel noise on affinities. Paper 1, which drowns cosines (in -1 to 1)."""
    noise_samples: int = Field(1, ge=1)
    """Draws of the noise a step, each solved; their mean gradient is smoother. Paper 1."""
    margin: float = Field(1.0, ge=0)
    """Taken off the true pairs' affinity before solving, in units of cosine. Paper 0."""
    lambda_: float = Field(
        float("inf"), gt=0, validation_alias=AliasChoices("lambda_", "lambda"), allow_inf_nan=True
    )
    """Step of implicit MLE; inf = gradient towards the true matching. Paper 80."""
    reduction: Literal["node", "graph"] = "node"
    """Divide the loss by graphs x nodes, or by graphs (paper): a scale only."""
    solver_restarts: int = Field(4, ge=1)
    """Starts of the matching solver; more find better matchings in more time."""
    solver_iterations: int = Field(16, ge=1)
    """Steps of the matching solver from each start."""

    @model_validator(mode="after")
    def _check_combinations(self) -> "LvmMedConfig":
        if self.neighbors >= self.graph_size:
            raise ValueError(
                f"method.neighbors: got {self.neighbors}, need fewer than method.graph_size = "
                f"{self.graph_size}; lower it or enlarge the graphs"
            )
        if math.isnan(self.lambda_):
            raise ValueError("method.lambda_: got nan, need a number above 0 or inf")
        return self


PAPER_LITERAL: dict[str, float | bool | str] = {
    "edge_weight": 1.0,
    "residual": False,
    "centering": False,
    "noise": 1.0,
    "margin": 0.0,
    "lambda_": 80.0,
    "reduction": "graph",
}
"""Fields in which the paper's printed method differs from the defaults."""


class LvmMed(Method):
    """Match the images of one view with those of the other, as graphs.

    Consecutive images of the batch form a graph, with edges to the nearest in feature space. The
    matching that maximises the affinity of nodes and of edges is solved for; the loss counts its
    wrong nodes, and implicit MLE gives the gradient: towards the affinities of the true matching,
    away from those of the one found.

    Differs from the paper in: projections are centred, message passing has a residual, edge terms
    are scaled down, true pairs carry a margin, noise is small (all fields of the configuration;
    `PAPER_LITERAL` undoes them). A short last graph is matched at its own size; the paper does not
    say what it does with it.

    Source:
        Paper sections 3.2.1 to 3.2.4, equations 1 to 6.
    """

    def __init__(self, config: LvmMedConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.projector = Projector(
            context.backbone.width,
            config.projection_width,
            num_hidden=config.projector_hidden_layers,
            hidden_width=config.projector_hidden_width,
            centering=config.centering,
            generator=context.generator,
        )
        self.message_passing = (
            MessagePassing(
                config.projection_width,
                num_layers=config.message_passing_layers,
                residual=config.residual,
                generator=context.generator,
            )
            if config.message_passing
            else None
        )

    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,
    ) -> LossOutput:
        """Match the graphs of the first two views under noise and margin.

        Args:
            views: two views of the same images.
            features: of both views.
            step: number of the step; sets the edge weight while it ramps up.
            generator: of the noise, which is drawn for the graphs of all processes.

        Returns:
            The Hamming loss (twice the share of wrong nodes, or twice their number a graph). An
            image left over after the last whole graph adds no loss; `num_unmatched` counts it.
        """
        pooled = features[0].pooled
        partition = self._partition(features)
        num_unmatched = pooled.new_tensor(float(partition.num_left_over))
        if partition.num_graphs == 0:
            # 0, but on the autograd graph, so that a backward pass works
            return LossOutput(total=pooled.sum() * 0.0, metrics={"num_unmatched": num_unmatched})
        with torch.autocast(pooled.device.type, enabled=False):
            problem = self._problem(views, features, partition, step=step)
            result = self._matching_loss(problem, generator=generator)
        metrics = _perturbed_metrics(result, partition)
        # the solver sees finite numbers only: a nan or inf must still reach the loss
        spoilt = 0.0 * (problem.vertex_affinity.sum() + problem.edge_affinity.sum())
        return LossOutput(
            total=result.loss + spoilt,
            terms={"matching_loss": result.loss.detach()},
            metrics={**metrics, "num_unmatched": num_unmatched},
        )

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Judge the matching of this process's images with and without noise and edges.

        Args:
            views: two views of the same images.
            features: of both views.
            step: number of the step.
            generator: of the noise.

        Returns:
            matching_accuracy: share of nodes matched right without noise and margin.
            matching_accuracy_first_order: the same by nodes alone.
            matching_accuracy_perturbed: the same under noise and margin, as in training.
            hamming: wrong entries of a training matching, twice the wrong nodes of a graph.
            noise_to_affinity: standard deviation of the noise over that of the node affinities.
            second_solve_skipped: share of graphs whose second solve was proved trivial.
            solver_gap: how far the noise-free matchings of a few graphs may lie below the best
                ones (an upper limit; 0 proves them optimal); absent for large graphs.
            edge_weight: in force at this step.
            Empty when the batch is too small for a graph.
        """
        partition = self._partition(features)
        if partition.num_graphs == 0:
            return {}
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            problem = self._problem(views, features, partition, step=step)
            matched = self._solve(problem)
            result = self._matching_loss(problem, generator=generator)
        metrics = _perturbed_metrics(result, partition)
        spread = affinity_std(problem)
        gap = sampled_solver_gap(problem, matched.permutation)
        return {
            "matching_accuracy": matched.accuracy,
            "matching_accuracy_first_order": matched.accuracy_first_order,
            **{name: float(value) for name, value in metrics.items()},
            "noise_to_affinity": self.config.noise * GUMBEL_STD / max(spread, 1e-12),
            "edge_weight": self._edge_weight(step),
            **({} if gap is None else {"solver_gap": gap}),
        }

    @torch.no_grad()
    def matching_of(
        self, views: list[Views], features: list[Features], *, step: int
    ) -> MatchedGraphs:
        """Solve for the matchings of a batch without noise and margin.

        Args:
            views: two views of the same images, at least two of them.
            features: of both views.
            step: number of the step; sets the edge weight while it ramps up.

        Returns:
            Matchings with and without edges, on the CPU.

        Raises:
            ValueError: fewer than two images.
        """
        partition = self._partition(features)
        if partition.num_graphs == 0:
            raise ValueError(f"views: got {len(views[0])} image, a graph needs at least 2")
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            return self._solve(self._problem(views, features, partition, step=step))

    def _partition(self, features: list[Features]) -> Partition:
        pooled = features[0].pooled
        return partition_batch(len(pooled), self.config.graph_size, device=pooled.device)

    def _problem(
        self, views: list[Views], features: list[Features], partition: Partition, *, step: int
    ) -> Problem:
        """Turn two views of a batch into matching problems."""
        config = self.config
        nodes_s = partition.split(self.projector(features[0].pooled.float()))
        nodes_t = partition.split(self.projector(features[1].pooled.float()))
        num_neighbors = min(config.neighbors, partition.size - 1)
        neighbors_s = knn_graph(nodes_s.detach(), num_neighbors, mask=partition.mask)
        neighbors_t = knn_graph(nodes_t.detach(), num_neighbors, mask=partition.mask)
        if self.message_passing is not None:
            nodes_s = self.message_passing(nodes_s, neighbors_s)
            nodes_t = self.message_passing(nodes_t, neighbors_t)
        vertex = config.alpha * global_affinity(nodes_s, nodes_t)
        if config.alpha < 1:
            vertex = vertex + (1 - config.alpha) * self._local(views, features, partition)
        weight = self._edge_weight(step)
        if weight == 0:
            neighbors_s, neighbors_t = neighbors_s[:, :, :0], neighbors_t[:, :, :0]
        edges = weight * edge_affinity(nodes_s, nodes_t, neighbors_s, neighbors_t)
        return Problem(
            vertex_affinity=vertex,
            edge_affinity=edges,
            neighbors_s=neighbors_s,
            neighbors_t=neighbors_t,
            mask=partition.mask,
        )

    def _local(
        self, views: list[Views], features: list[Features], partition: Partition
    ) -> Float[Tensor, "G N N"]:
        rows, cols = features[0].map.shape[2:]
        # [B, D, h, w] -> [G, N, R, D]
        maps = [partition.split(one.map.flatten(2).transpose(1, 2)) for one in features[:2]]
        centers = [
            partition.split(one.region_centers(rows, cols).flatten(1, 2)) for one in views[:2]
        ]
        return local_affinity(
            *maps,
            *centers,
            best_frac=self.config.local_best_frac,
            keep_all_features=self.config.local_keep_all_features,
        )

    def _edge_weight(self, step: int) -> float:
        ramp = self.config.edge_ramp_steps
        if not self.config.second_order:
            return 0.0
        return self.config.edge_weight * (min(1.0, step / ramp) if ramp else 1.0)

    def _matching_loss(self, problem: Problem, *, generator: torch.Generator) -> MatchingLoss:
        config = self.config
        num_samples = config.noise_samples
        vertex_noise, edge_noise = (
            torch.cat([_noise_like(part, generator=generator) for _ in range(num_samples)])
            for part in (problem.vertex_affinity, problem.edge_affinity)
        )
        problem = problem.repeated(num_samples)
        return matching_loss(
            torch.nan_to_num(problem.vertex_affinity),
            torch.nan_to_num(problem.edge_affinity),
            problem.neighbors_s,
            problem.neighbors_t,
            mask=problem.mask,
            noise=config.noise,
            margin=config.margin,
            lambda_=config.lambda_,
            restarts=config.solver_restarts,
            iterations=config.solver_iterations,
            reduction=config.reduction,
            generator=generator,
            vertex_noise=vertex_noise,
            edge_noise=edge_noise,
        )

    def _solve(self, problem: Problem) -> MatchedGraphs:
        return solve_noise_free(
            problem,
            restarts=self.config.solver_restarts,
            iterations=self.config.solver_iterations,
        )


def _noise_like(affinity: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw noise for the graphs of all processes and keep this one's share."""
    num_graphs = affinity.shape[0]
    shape = (num_graphs * world_size(), *affinity.shape[1:])
    noise = draw_gumbel(shape, generator=generator, device=affinity.device)
    return noise[rank() * num_graphs : (rank() + 1) * num_graphs]


def _perturbed_metrics(result: MatchingLoss, partition: Partition) -> dict[str, Tensor]:
    num_solved = len(result.hamming) // partition.num_graphs * partition.num_matched
    return {
        "matching_accuracy_perturbed": 1 - result.hamming.sum() / 2 / num_solved,
        "hamming": result.hamming.float().mean(),
        "second_solve_skipped": result.second_solve_skipped.float().mean(),
    }
