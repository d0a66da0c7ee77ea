"""LVM-Med: learn by matching the graphs of two views of a batch, with second-order terms.

Letters used in shapes:
    B: images of this process.
    F: length of a projection.
    G: graphs of this process.
    N: nodes of a graph.
"""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lvmmed.augment.rows import map_tensors
from lvmmed.augment.views import Views
from lvmmed.distributed import all_gather
from lvmmed.matching.affinity import compare_directions, edge_affinity, global_affinity
from lvmmed.matching.cuda_graph import GraphedSolve
from lvmmed.matching.graph import Problem, join_problems, knn_graph
from lvmmed.matching.imle import MatchingLoss, Solver, matching_loss
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector
from lvmmed.models.message_passing import MessagePassing
from lvmmed.models.receptive_fields import position_shares
from lvmmed.ssl.batch_assignment import (
    BatchAssignment,
    batch_assignment_loss,
    noise_free_assignment_accuracy,
)
from lvmmed.ssl.graph_nodes import GraphNodes, gumbel_like, nodes_of_view, random_partition
from lvmmed.ssl.lvm_med_config import PAPER_LITERAL, LvmMedConfig
from lvmmed.ssl.matching_figures import figures_of_matching, perturbed_figures
from lvmmed.ssl.method import LossOutput, Method, MethodContext
from lvmmed.ssl.noise_free import (
    MatchedGraphs,
    affinity_std,
    affinity_std_of_graphs,
    solve_noise_free,
)
from lvmmed.ssl.partition import Partition, partition_batch, similar_order
from lvmmed.ssl.region_matching import match_regions

PAPER_LAMBDA = float(PAPER_LITERAL["lambda_"])
"""Step at which the second solve is judged where there is none, as lambda is infinite."""


class LvmMed(Method):
    """Match the images of one view with those of the other, as graphs.

    Consecutive images of the batch form a graph, with edges to the nearest in feature space. The
    matching that maximises the affinity of nodes and of edges is solved for; the loss counts its
    wrong nodes, and implicit MLE gives the gradient: towards the affinities of the true matching,
    away from those of the one found.

    Differs from the paper in: a batch is cut into graphs in several ways and also matched as a
    whole without edges, projections are centred, message passing has a residual, edge terms are
    scaled down, true pairs carry a margin, noise is small (all fields of the configuration; the
    recipe `paper-literal` undoes them). A short last graph is matched at its own size; the paper
    does not say what it does with it.

    Source:
        Paper sections 3.2.1 to 3.2.4, equations 1 to 6.
    """

    def __init__(self, config: LvmMedConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self._num_steps = context.facts.num_steps
        self.shares = position_shares(context.backbone, context.facts.size_px)
        self.training_solver = GraphedSolve()
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
        self.region_projector = (
            Projector(
                context.backbone.width,
                config.projection_width,
                num_hidden=config.projector_hidden_layers,
                hidden_width=config.projector_hidden_width,
                centering=config.centering,
                generator=context.generator,
            )
            if config.region_weight
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
            views: two views of the same images, then small crops, if any.
            features: of each view. Small crops take part in the matching of the whole batch only.
            step: number of the step; sets edge weight, noise and size of graphs where they change.
            generator: of the noise, which is drawn for the graphs of all processes.

        Returns:
            The Hamming loss (twice the share of wrong nodes, or twice their number a graph).
            `num_unmatched` counts the images that no graph of the first partition has.
        """
        pooled = features[0].pooled
        with torch.autocast(pooled.device.type, enabled=False):
            sides = self._sides(views, features)
            nodes = [side.nodes for side in sides]
            partition = self._partition(sides, self.config.graph_size_at(step, self._num_steps))
            num_unmatched = pooled.new_full((), partition.num_left_over)
            if partition.num_graphs == 0:
                # 0, but on the autograd graph, so that a backward pass works
                return LossOutput(
                    total=pooled.sum() * 0.0, metrics={"num_unmatched": num_unmatched}
                )
            problems = self._training_problems(sides, partition, step=step, generator=generator)
            result = self._matching_loss(
                problems, step=step, generator=generator, solver=self.training_solver
            )
            total = result.loss
            terms = {"matching_loss": total.detach()}
            metrics = perturbed_figures(result, partition)
            if self.config.batch_weight:
                small = [self.projector(one.pooled.float()) for one in features[2:]]
                assigned = self._batch_loss([*nodes, *small], step=step, generator=generator)
                part = self.config.batch_weight * assigned.loss
                total = total + part
                terms["batch_matching_loss"] = part.detach()
                metrics["batch_accuracy_perturbed"] = assigned.accuracy[0]  # of the full views
            if self.region_projector is not None:
                matched = match_regions(
                    views,
                    features,
                    self.region_projector,
                    shares=self.shares,
                    best_frac=self.config.local_best_frac,
                    num_pairs=self.config.region_pairs,
                    assign=partial(self._assign, step=step, generator=generator),
                    generator=generator,
                )
                part = self.config.region_weight * matched.loss
                total = total + part
                terms["region_matching_loss"] = part.detach()
                metrics["region_accuracy_perturbed"] = matched.accuracy.mean()
        # the solver sees finite numbers only: a nan or inf must still reach the loss
        spoilt = 0.0 * sum(
            problem.vertex_affinity.sum() + problem.edge_affinity.sum() for problem in problems
        )
        return LossOutput(
            total=total + spoilt, terms=terms, metrics={**metrics, "num_unmatched": num_unmatched}
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
        """Judge the matching of this process's graphs with and without noise and edges.

        Args:
            views: two views of the same images.
            features: of both views.
            step: number of the step.
            generator: of the noise.

        Returns:
            matching_accuracy_perturbed: share of nodes matched right under noise and margin, as in
                training.
            hamming: wrong entries of a training matching, twice the wrong nodes of a graph.
            What `figures_of_matching` tells of the matchings without noise and margin.
            second_solve_skipped: share of training matchings whose second solve is proved trivial;
                for an infinite lambda, which needs none, at the paper's lambda.
            edge_weight: in force at this step.
            batch_accuracy: where `batch_weight` asks for that matching, share of the first
                `batch_matching_size` images of all processes matched right without noise and edges.
            Empty when the batch is too small for a graph.
        """
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            sides = self._sides(views, features)
            partition = self._partition(sides, self.config.graph_size)
            if partition.num_graphs == 0:
                return {}
            problem = self._problem(sides, partition, step=step)
            matched = self._solve(problem, partition)
            judged = PAPER_LAMBDA if math.isinf(self.config.lambda_) else self.config.lambda_
            result = self._matching_loss([problem], step=step, generator=generator, lambda_=judged)
        found = {
            **{name: float(value) for name, value in perturbed_figures(result, partition).items()},
            **figures_of_matching(problem, matched, noise=self._noise_scale(problem, step=step)),
            "second_solve_skipped": float(result.second_solve_skipped.float().mean()),
            "edge_weight": self.config.edge_weight_at(step),
        }
        if self.config.batch_weight:
            found["batch_accuracy"] = noise_free_assignment_accuracy(
                *(all_gather(side.nodes)[: self.config.batch_matching_size] for side in sides)
            )
        return found

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
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            sides = self._sides(views, features)
            partition = self._partition(sides, self.config.graph_size)
            if partition.num_graphs == 0:
                raise ValueError(f"views: got {len(views[0])} image, a graph needs at least 2")
            problem = self._problem(sides, partition, step=step)
            return self._solve(problem, partition)

    def _sides(self, views: list[Views], features: list[Features]) -> list[GraphNodes]:
        """Project both full views, and lay out their maps where regions are compared."""
        has_regions = self.config.alpha < 1
        return [
            nodes_of_view(view, one, self.projector, has_regions=has_regions, shares=self.shares)
            for view, one in zip(views[:2], features[:2], strict=True)
        ]

    def _partition(self, sides: list[GraphNodes], size: int) -> Partition:
        order = None
        if self.config.grouping == "similar":
            first, second = (functional.normalize(side.nodes, dim=1) for side in sides)
            order = similar_order(first + second, size)
        nodes = sides[0].nodes
        return partition_batch(len(nodes), size, device=nodes.device, order=order)

    def _training_problems(
        self,
        sides: list[GraphNodes],
        partition: Partition,
        *,
        step: int,
        generator: torch.Generator,
    ) -> list[Problem]:
        """Graphs of this process's images, then random ones of the images of all processes."""
        problems = [self._problem(sides, partition, step=step)]
        num_further = self.config.partitions - 1
        joined = [side.joined() for side in sides] if num_further else sides
        nodes, size = sides[0].nodes, self.config.graph_size_at(step, self._num_steps)
        for _ in range(num_further):
            drawn = random_partition(len(nodes), size, generator=generator, device=nodes.device)
            problems.append(self._problem(joined, drawn, step=step))
        return problems

    def _problem(self, sides: list[GraphNodes], partition: Partition, *, step: int) -> Problem:
        """Turn two views of a batch into matching problems."""
        config = self.config
        nodes_s, nodes_t = (partition.split(side.nodes) for side in sides)
        num_neighbors = min(config.neighbors, partition.size - 1)
        neighbors_s = knn_graph(nodes_s.detach(), num_neighbors, mask=partition.mask)
        neighbors_t = knn_graph(nodes_t.detach(), num_neighbors, mask=partition.mask)
        if self.message_passing is not None:
            nodes_s = self.message_passing(nodes_s, neighbors_s)
            nodes_t = self.message_passing(nodes_t, neighbors_t)
        vertex = config.alpha * global_affinity(nodes_s, nodes_t)
        if config.alpha < 1:
            vertex = vertex + (1 - config.alpha) * self._local(sides, partition)
        weight = config.edge_weight_at(step)
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

    def _local(self, sides: list[GraphNodes], partition: Partition) -> Float[Tensor, "G N N"]:
        regions = [side.regions for side in sides if side.regions is not None]
        return compare_directions(
            *(map_tensors(one, partition.split) for one in regions),
            best_frac=self.config.local_best_frac,
            keep_all_features=self.config.local_keep_all_features,
        )

    def _noise_scale(self, problem: Problem, *, step: int) -> float:
        """Scale of the Gumbel noise in units of the affinities."""
        scale = self.config.noise_at(step, self._num_steps)
        is_relative = self.config.noise_unit == "relative"
        return scale * affinity_std(problem) if is_relative else scale

    def _batch_loss(
        self, nodes: list[Tensor], *, step: int, generator: torch.Generator
    ) -> BatchAssignment:
        """Match each full view (the first two) with every later view."""
        pairs = [
            (nodes[first], nodes[second])
            for first in range(2)
            for second in range(first + 1, len(nodes))
        ]
        rows_s, rows_t = (torch.stack(side) for side in zip(*pairs, strict=True))
        return self._assign(rows_s, rows_t, step=step, generator=generator)

    def _assign(
        self, rows_s: Tensor, rows_t: Tensor, *, step: int, generator: torch.Generator
    ) -> BatchAssignment:
        config = self.config
        return batch_assignment_loss(
            rows_s,
            rows_t,
            size=config.batch_matching_size,
            noise=self.config.noise_at(step, self._num_steps),
            is_relative=config.noise_unit == "relative",
            margin=config.margin_of_batch,
            num_samples=config.noise_samples,
            generator=generator,
        )

    def _matching_loss(
        self,
        problems: list[Problem],
        *,
        step: int,
        generator: torch.Generator,
        solver: Solver | None = None,
        lambda_: float | None = None,
    ) -> MatchingLoss:
        config = self.config
        num_samples = config.noise_samples
        # drawn for one partition at a time, as each is shared out over the processes by itself
        vertex_noise, edge_noise = (
            torch.cat(
                [
                    gumbel_like(getattr(problem, name), generator=generator)
                    for _ in range(num_samples)
                    for problem in problems
                ]
            )
            for name in ("vertex_affinity", "edge_affinity")
        )
        problem = join_problems(problems)
        if config.noise_unit == "relative":
            unit = affinity_std_of_graphs(problem).nan_to_num().repeat(num_samples).view(-1, 1, 1)
            vertex_noise, edge_noise = unit * vertex_noise, unit * edge_noise
        problem = problem.repeated(num_samples)
        return matching_loss(
            torch.nan_to_num(problem.vertex_affinity),
            torch.nan_to_num(problem.edge_affinity),
            problem.neighbors_s,
            problem.neighbors_t,
            mask=problem.mask,
            noise=self.config.noise_at(step, self._num_steps),
            margin=config.margin,
            lambda_=config.lambda_ if lambda_ is None else lambda_,
            restarts=config.solver_restarts,
            iterations=config.solver_iterations,
            reduction=config.reduction,
            generator=generator,
            vertex_noise=vertex_noise,
            edge_noise=edge_noise,
            solver=solver,
        )

    def _solve(self, problem: Problem, partition: Partition) -> MatchedGraphs:
        return solve_noise_free(
            problem,
            order=partition.order,
            restarts=self.config.solver_restarts,
            iterations=self.config.solver_iterations,
        )
