"""What is known of a pre-training run before anything is loaded, and refusing what cannot work."""

import math
from dataclasses import dataclass

from lvmmed import distributed
from lvmmed.config import RunConfig
from lvmmed.data.sampling import BatchSampler
from lvmmed.data.store import Store
from lvmmed.models.backbones import size_refusal
from lvmmed.recipes.image_feed import make_sampler, owners
from lvmmed.recipes.monitoring import HoldOut, choose_held_out
from lvmmed.ssl.lvm_med_config import LvmMedConfig
from lvmmed.ssl.method import RunFacts
from lvmmed.ssl.table import METHODS
from lvmmed.types import InputError


def graph_size(config: RunConfig) -> int | None:
    """Images of a graph, None for methods without graphs."""
    return config.method.graph_size if isinstance(config.method, LvmMedConfig) else None


def run_length(config: RunConfig, *, images_per_epoch: int) -> int:
    """Length of a run in steps.

    Epochs become epochs * images_per_epoch / batch_size steps, rounded up once at the end, as
    batches straddle the borders of epochs: so many passes are complete, and less than one batch
    is trained on beyond them.

    Args:
        config: of the run.
        images_per_epoch: images that are drawn in a pass.

    Returns:
        At least 1.
    """
    if config.train.steps is not None:
        return config.train.steps
    num_steps = (config.train.epochs or 0.0) * images_per_epoch / config.train.batch_size
    return max(1, math.ceil(round(num_steps, 6)))  # 0.07 * 100 is above 7


def run_facts(
    config: RunConfig,
    *,
    num_images: int,
    steps_per_epoch: int,
    images_per_epoch: int | None = None,
) -> RunFacts:
    """Collect what is known of a run before anything is loaded.

    Args:
        config: of the run.
        num_images: images that are trained on.
        steps_per_epoch: whole steps that a pass over them touches.
        images_per_epoch: images that are drawn in a pass; None = each image once.

    Returns:
        What methods check and are built from.
    """
    return RunFacts(
        backbone=config.model.backbone,
        size_px=config.views.size,
        batch_size=config.train.batch_size,
        num_images=num_images,
        steps_per_epoch=steps_per_epoch,
        num_steps=run_length(config, images_per_epoch=images_per_epoch or num_images),
        num_small_crops=config.views.small_crops,
        num_ranks=distributed.world_size(),
    )


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Which images of a store a run trains on and watches, in which order, and for how long.

    Attributes:
        held_out: images to train on and images to watch.
        sampler: images of each step.
        facts: of the run.
    """

    held_out: HoldOut
    sampler: BatchSampler
    facts: RunFacts


def hold_out(store: Store) -> HoldOut:
    """Choose the images of a store that are kept out of training and watched; always the same."""
    return choose_held_out(owners(store), pixels=store.column("pixel_hash"))


def plan_run(config: RunConfig, store: Store) -> RunPlan:
    """Settle what a configuration makes of a store; the same every time.

    Args:
        config: of the run.
        store: its images.

    Returns:
        The plan; what `make_sampler` refuses is refused.
    """
    held_out = hold_out(store)
    sampler = make_sampler(
        store,
        held_out.train,
        data=config.data,
        batch_size=config.train.batch_size,
        graph_size=graph_size(config) or 1,
        seed=config.train.seed,
    )
    facts = run_facts(
        config,
        num_images=len(held_out.train),
        steps_per_epoch=sampler.steps_per_epoch,
        images_per_epoch=sampler.images_per_epoch,
    )
    return RunPlan(held_out=held_out, sampler=sampler, facts=facts)


def refuse_bad_recipe(config: RunConfig, facts: RunFacts) -> None:
    """Refuse, before anything is loaded, what the method cannot do.

    Args:
        config: of the run.
        facts: of the run.

    Raises:
        InputError: frozen batch-norm statistics of random weights, small crops that the method has
            no use for or the encoder does not take, or what the method's row refuses.
    """
    row = METHODS[config.method.name]
    if config.model.frozen_batch_norm and config.model.weights == "random":
        raise InputError(
            "model.frozen_batch_norm: got true, but random weights have no statistics to keep; "
            "set it to false, or model.weights to weights that were trained"
        )
    if facts.num_small_crops and not row.takes_small_crops:
        able = ", ".join(name for name, one in METHODS.items() if one.takes_small_crops)
        raise InputError(
            f"views.small_crops: got {facts.num_small_crops}, but {config.method.name} compares "
            f"two views only; set it to 0, or take one of {able or 'no method here'}"
        )
    if facts.num_small_crops:
        _refuse_small_size(config)
    row.check(config.method, facts)


def _refuse_small_size(config: RunConfig) -> None:
    name, size_px, small_px = config.model.backbone, config.views.size, config.views.small().size
    reason = size_refusal(name, small_px, built_for_px=size_px)
    if reason is not None:
        raise InputError(
            f"views.small_crops: got {config.views.small_crops} of {small_px} px, which "
            f"{name!r} built for {size_px} px does not take ({reason}); set views.small_size to "
            f"one that it takes, such as {size_px}, views.small_crops to 0, or model.backbone to "
            "resnet50 or vit_small_patch16_224"
        )
