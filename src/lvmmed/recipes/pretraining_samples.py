"""What the report shows of a pre-training run: input views, and one graph matched (samples.npz)."""

from collections.abc import Sequence

import numpy as np
import torch

from lvmmed.augment.views import ImageBatch, Views, denormalise
from lvmmed.config import RunConfig
from lvmmed.data.store import Store
from lvmmed.recipes.image_feed import load_images
from lvmmed.recipes.monitoring import square_images
from lvmmed.recipes.pretraining_step import Learner
from lvmmed.ssl.lvm_med import LvmMed

UNCHANGED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""Normalisation that leaves pixels in 0..1."""


def collect_samples(
    learner: Learner, store: Store, indices: Sequence[int], *, config: RunConfig, step: int
) -> dict[str, np.ndarray]:
    """Draw views of a few images and, for graph matching, match one graph with the final encoder.

    Every rank computes the same.

    Args:
        learner: after training; its encoder runs in evaluation.
        store: where the images are.
        indices: images to take, in order: the first `log.samples` are shown, and as many as fill
            whole graphs of a batch are matched, of which the first graph is kept.
        config: of the run.
        step: number of steps done.

    Returns:
        Arrays as samples.npz holds them; empty when `log.samples` is 0 or there are no images.
    """
    num_shown = min(config.log.samples, len(indices))
    if num_shown == 0:
        return {}
    batch = load_images(store, list(indices[: max(num_shown, config.train.batch_size)]))
    everything = slice(0, len(batch))
    views = learner.two_views(batch, sizes=batch.sizes, own=everything, step=step, stream="samples")
    arrays = _shown_views(learner, batch[slice(0, num_shown)], views, num_shown, config)
    if isinstance(learner.method, LvmMed):
        arrays.update(_matched_graph(learner, learner.method, views, step=step))
    return arrays


def _shown_views(
    learner: Learner, batch: ImageBatch, views: list[Views], num: int, config: RunConfig
) -> dict[str, np.ndarray]:
    originals = square_images(batch, config.views.size, **UNCHANGED)
    arrays = {"originals": denormalise(originals, **UNCHANGED)}
    for name, view in zip(("s", "t"), views, strict=True):
        height, width = view.source_size[:num].cpu().float().unbind(1)
        sides = torch.stack([width, height, width, height], dim=1)
        arrays[f"view_{name}"] = _pictures(learner, view, num)
        arrays[f"box_{name}"] = (view.crops.box[:num].cpu() / sides).numpy().astype(np.float32)
        arrays[f"flipped_{name}"] = view.crops.flipped[:num].cpu().numpy()
    return arrays


@torch.no_grad()
def _matched_graph(
    learner: Learner, method: LvmMed, views: list[Views], *, step: int
) -> dict[str, np.ndarray]:
    """Match the whole batch, so that it is centred as in training, and keep its first graph."""
    size = method.config.graph_size
    num = len(views[0]) - len(views[0]) % size if len(views[0]) >= size else len(views[0])
    if num < 2:
        return {}
    views = [view[slice(0, num)] for view in views]
    learner.backbone.eval()
    matched = method.matching_of(views, learner.encode(views), step=step)
    learner.backbone.train()
    num_nodes = matched.permutation.shape[1]
    return {
        "graph_view_s": _pictures(learner, views[0], num_nodes),
        "graph_view_t": _pictures(learner, views[1], num_nodes),
        "permutation": matched.permutation[0].numpy(),
        "permutation_first_order": matched.permutation_first_order[0].numpy(),
        "neighbors_s": matched.neighbors_s[0].numpy(),
        "neighbors_t": matched.neighbors_t[0].numpy(),
    }


def _pictures(learner: Learner, view: Views, num: int) -> np.ndarray:
    return denormalise(view.images[:num], learner.backbone.mean, learner.backbone.std)
