"""Fields of LVM-Med."""

import math
from typing import Literal

from pydantic import AliasChoices, Field, model_validator

from lvmmed.config import MethodConfig
from lvmmed.ssl.method import RunFacts
from lvmmed.ssl.regions import check_regions
from lvmmed.types import InputError


class LvmMedConfig(MethodConfig):
    """Fields of LVM-Med; the defaults are the recipe `lvm-med`, with the paper's value beside."""

    name: Literal["lvm-med"] = "lvm-med"
    """Row of the table of methods."""
    graph_size: int = Field(16, ge=2)
    """Images of a graph (paper appendix A; best of its figure 5). Chance is 1 / graph_size."""
    graph_size_end: int | None = Field(None, ge=2)
    """Images of a training graph at the end, reached by doublings at even intervals; none = fixed.
    Figures, and the samples that are kept, stay those of graph_size."""
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
    grouping: Literal["order", "similar"] = "order"
    """Who shares a graph: images as they stand in the batch (paper), or those that look alike."""
    partitions: int = Field(4, ge=1)
    """Ways in which a batch is cut into graphs in a step; those after the first are random and of
    the images of all processes. Paper 1."""
    batch_weight: float = Field(1.0, ge=0)
    """Weight of a first-order matching of the whole batch beside that of the graphs. Paper 0."""
    batch_matching_size: int = Field(256, ge=2)
    """Images of that matching at most; a larger batch is cut, as the time grows with the cube."""
    region_weight: float = Field(0.0, ge=0)
    """Weight of a first-order matching of regions of the map over the whole batch. Paper 0."""
    region_pairs: int = Field(2, ge=1)
    """Pairs of regions of an image that are so matched in a step, in each of four ways (by place
    and by features, from either view), drawn among those that local_best_frac keeps."""
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
    noise_end: float | None = Field(None, ge=0)
    """Scale at the end of the run, reached linearly; none = `noise` throughout, as in the paper."""
    noise_unit: Literal["absolute", "relative"] = "absolute"
    """Unit of the noise: that of the affinities, or the deviation of a graph's node affinities."""
    noise_samples: int = Field(1, ge=1)
    """Draws of the noise a step, each solved; their mean gradient is smoother. Paper 1."""
    margin: float = Field(1.0, ge=0)
    """Taken off the true pairs' affinity before solving, in units of cosine. Paper 0."""
    batch_margin: float | None = Field(None, ge=0)
    """Margin of the matchings of the whole batch and of regions; none = that of `margin`."""
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

    def graph_size_at(self, step: int, num_steps: int) -> int:
        """Images of a training graph at a step."""
        start, end = self.graph_size, self.graph_size_end
        if end is None:
            return start
        num_doublings = (end // start).bit_length() - 1
        return start << min(num_doublings, step * (num_doublings + 1) // num_steps)

    def edge_weight_at(self, step: int) -> float:
        """Factor of the edge affinities at a step; 0 for a first-order matching."""
        ramp = self.edge_ramp_steps
        if not self.second_order:
            return 0.0
        return self.edge_weight * (min(1.0, step / ramp) if ramp else 1.0)

    def noise_at(self, step: int, num_steps: int) -> float:
        """Scale of the Gumbel noise at a step, in `noise_unit`."""
        start, end = self.noise, self.noise_end
        return start if end is None else start + (end - start) * min(1.0, step / num_steps)

    @property
    def margin_of_batch(self) -> float:
        """Margin of the matchings of the whole batch and of regions."""
        return self.margin if self.batch_margin is None else self.batch_margin

    @model_validator(mode="after")
    def _check_combinations(self) -> "LvmMedConfig":
        if self.neighbors >= self.graph_size:
            raise ValueError(
                f"method.neighbors: got {self.neighbors}, need fewer than method.graph_size = "
                f"{self.graph_size}; lower it or enlarge the graphs"
            )
        if self.graph_size_end is not None and not _is_doubled(
            self.graph_size, self.graph_size_end
        ):
            raise ValueError(
                f"method.graph_size_end: got {self.graph_size_end}, need method.graph_size = "
                f"{self.graph_size} times 1, 2, 4, 8, ..., such as {4 * self.graph_size}"
            )
        if self.batch_margin is not None and not (self.batch_weight or self.region_weight):
            raise ValueError(
                f"method.batch_margin: got {self.batch_margin:g}, but method.batch_weight and "
                "method.region_weight are 0, so that neither the whole batch nor regions are "
                "matched; leave it out, or set one of them above 0"
            )
        if math.isnan(self.lambda_):
            raise ValueError("method.lambda_: got nan, need a number above 0 or inf")
        return self


def check_lvm_med(config: LvmMedConfig, facts: RunFacts) -> None:
    """Refuse what the batch, the views or the processes leave nothing to match of.

    Args:
        config: of the method.
        facts: of the run.

    Raises:
        InputError: small crops without the matching of the whole batch; regions of views that are
            a single one; a batch that does not divide into graphs of the largest size on every
            process.
    """
    if facts.num_small_crops and not config.batch_weight:
        raise InputError(
            f"views.small_crops: got {facts.num_small_crops}, but with method.batch_weight=0 only "
            "graphs of full views are matched; set it to 0, or method.batch_weight above 0"
        )
    if config.region_weight:
        check_regions(
            facts,
            consequence="its regions are whole images",
            else_do="take the recipe lvm-med",
        )
    unit = facts.num_ranks * (config.graph_size_end or config.graph_size)
    if facts.num_ranks > 1 and facts.batch_size % unit:
        raise InputError(
            f"train.batch_size: got {facts.batch_size}, need a multiple of {unit} "
            f"({facts.num_ranks} processes x graphs of up to {unit // facts.num_ranks}); change it "
            "or method.graph_size_end"
        )


def _is_doubled(start: int, end: int) -> bool:
    factor, rest = divmod(end, start)
    return rest == 0 and factor > 0 and factor & (factor - 1) == 0


PAPER_LITERAL: dict[str, float | bool | str] = {
    "batch_weight": 0.0,
    "partitions": 1,
    "edge_weight": 1.0,
    "residual": False,
    "centering": False,
    "noise": 1.0,
    "margin": 0.0,
    "lambda_": 80.0,
    "reduction": "graph",
}
"""Fields in which the paper's printed method differs from the defaults."""
