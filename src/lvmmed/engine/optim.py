"""Optimisers, their parameter groups, and the course of the learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvmmed.config import TrainConfig

MOMENTUM = 0.9
"""Momentum of SGD and LARS."""
TRUST_COEFFICIENT = 1e-3
"""LARS: step length as a fraction of the norm of the weights."""
NUM_HALVINGS = 4
"""Halvings of the schedule `halving`, at equal distances over the run."""
NO_DECAY_NAMES = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "rel_pos",
    "relative_position_bias_table",
)
"""Parameters of transformers that are no weights of a map, whatever their shape.

`rel_pos` is how SAM calls its tables of relative positions, the last one how Swin and BEiT do."""


def learning_rate_at(step: int, *, num_steps: int, config: TrainConfig) -> float:
    """Learning rate of a step, a pure function of its number.

    Over the first `warmup_frac` of the run it rises in equal steps and reaches the peak with the
    last of them. Then: "constant" stays; "cosine" falls along half a cosine over what is left of
    the run and would reach zero one step after the last; "halving" is halved when 20, 40, 60 and
    80 % of the whole run are done.

    Args:
        step: 0 for the first.
        num_steps: length of the run.
        config: peak, schedule and warm-up.

    Returns:
        A positive number.

    Source:
        Halving at 20, 40, 60, 80 %: the paper (section 4.1) halves four times and does not say
        when; even spacing is our reading.
    """
    num_warmup = round(config.warmup_frac * num_steps)
    peak = config.learning_rate
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    if config.schedule == "cosine":
        done = (step - num_warmup) / (num_steps - num_warmup)
        return 0.5 * peak * (1.0 + math.cos(math.pi * done))
    if config.schedule == "halving":
        halvings = (NUM_HALVINGS + 1) * step // num_steps
        return float(peak * 0.5 ** min(halvings, NUM_HALVINGS))
    return peak


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into those with weight decay and those without.

    Without: vectors and scalars (biases, norms), and the tokens and positions of transformers.

    Args:
        named: names and parameters; frozen ones are left out, shared ones counted once.
        weight_decay: decay of the first group.

    Returns:
        Two groups as torch optimisers take them, with `adapts` saying whether LARS scales the
        step to the norm of the weights; empty groups are left out.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    seen: set[int] = set()
    for name, parameter in named:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        is_exempt = parameter.ndim <= 1 or any(part in name for part in NO_DECAY_NAMES)
        (exempt if is_exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "adapts": True},
        {"params": exempt, "weight_decay": 0.0, "adapts": False},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a run for every trainable parameter of a module.

    Args:
        module: owner of the parameters.
        config: kind, learning rate and weight decay. "adam" adds the decay to the gradient,
            "adamw" takes it off the weights; "sgd" and "lars" have momentum 0.9. torch's own run
            fused (a quarter of the time on a processor).

    Returns:
        A fresh optimiser.
    """
    groups = parameter_groups(module.named_parameters(), weight_decay=config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, fused=True)
    return Lars(groups, lr=config.learning_rate, momentum=MOMENTUM)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def lars_update(
    weights: Float[Tensor, "..."],
    gradient: Float[Tensor, "..."],
    *,
    weight_decay: float,
    adapts: bool,
) -> Float[Tensor, "..."]:
    """Direction that LARS adds to its momentum: g = gradient + decay * w, scaled.

    With `adapts` g is scaled by trust * |w| / |g|; where either norm is zero it is left as it is.

    Args:
        weights: the parameter.
        gradient: its gradient.
        weight_decay: decay added to the gradient.
        adapts: whether the step length follows the norm of the weights.

    Returns:
        A new tensor.

    Source:
        You, Gitman, Ginsburg 2017 (arXiv 1708.03888), algorithm 1, in the form that self-supervised
        work uses: the decay is part of g before its norm is taken.
    """
    update = gradient.add(weights, alpha=weight_decay)
    if not adapts:
        return update
    weight_norm, update_norm = weights.norm(), update.norm()
    is_usable = (weight_norm > 0) & (update_norm > 0)
    ratio = TRUST_COEFFICIENT * weight_norm / update_norm.clamp(min=torch.finfo(update.dtype).tiny)
    return update * torch.where(is_usable, ratio, torch.ones_like(ratio))


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose step on each tensor is proportional to the norm of its weights.

    Groups with `adapts` False (biases, norms) take plain SGD steps.
    """

    def __init__(self, params: Any, lr: float, *, momentum: float = MOMENTUM) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adapts": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: recomputes the loss, as in torch; None when gradients are there.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        update = lars_update(
            parameter,
            gradient,
            weight_decay=group["weight_decay"],
            adapts=group["adapts"],
        )
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        state["velocity"].mul_(group["momentum"]).add_(update)
        parameter.add_(state["velocity"], alpha=-group["lr"])
