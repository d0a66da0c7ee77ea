"""What is shown of a pre-training run: input views, and a few matched graphs (samples.npz)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from lvmmed.augment.views import ImageBatch, Views, denormalise
from lvmmed.config import RunConfig
from lvmmed.data.store import Store
from lvmmed.recipes.image_feed import draw_of, load_images
from lvmmed.recipes.monitoring import square_images
from lvmmed.recipes.pretraining_step import Learner
from lvmmed.report.pictures import NODE_PX, graph_suffix
from lvmmed.ssl.lvm_med import LvmMed

MAX_GRAPHS, MAX_NODES = 4, 64
"""Most matched graphs that are kept, and most nodes of all but the first one."""
UNCHANGED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""Normalisation that leaves pixels in 0..1."""


def collect_samples(
    learner: Learner, store: Store, indices: Sequence[int], *, config: RunConfig, step: int
) -> dict[str, np.ndarray]:
    """Draw views of a few images and, for graph matching, match a few graphs by the final encoder.

    Every rank computes the same.

    Args:
        learner: after training; its encoder runs in evaluation.
        store: where the images are.
        indices: images to take: the first `log.samples` are shown, and as many as fill whole graphs
            of a batch are matched, of which the first graphs are kept. Mixed graphs are mixed here
            too: the images are shuffled, the same way every time.
        config: of the run.
        step: number of steps done.

    Returns:
        Arrays as samples.npz holds them; empty when `log.samples` is 0 or there are no images.
    """
    num_shown = min(config.log.samples, len(indices))
    if num_shown == 0:
        return {}
    if config.data.composition == "mixed":
        indices = np.random.default_rng(0).permutation(indices).tolist()
    chosen = list(indices[: max(num_shown, config.train.batch_size)])
    batch = load_images(store, chosen)
    draw = draw_of(batch)
    views = learner.views(draw, step=step, stream="samples")
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
        arrays[f"view_{name}"] = _pictures(learner, view, slice(0, num))
        arrays[f"box_{name}"] = (view.crops.box[:num].cpu() / sides).numpy().astype(np.float32)
        arrays[f"flipped_{name}"] = view.crops.flipped[:num].cpu().numpy()
    return arrays


@torch.no_grad()
def _matched_graph(
    learner: Learner, method: LvmMed, views: list[Views], *, step: int
) -> dict[str, np.ndarray]:
    """Match the whole batch, so that it is centred as in training, and keep its first graphs."""
    size = method.config.graph_size
    num = len(views[0]) - len(views[0]) % size if len(views[0]) >= size else len(views[0])
    if num < 2:
        return {}
    views = [view[slice(0, num)] for view in views]
    learner.backbone.eval()
    matched = method.matching_of(views, learner.encode(views), step=step)
    learner.backbone.train()
    num_graphs, num_nodes = matched.permutation.shape
    arrays: dict[str, np.ndarray] = {}
    for number in range(min(num_graphs, MAX_GRAPHS, max(1, MAX_NODES // num_nodes))):
        own = matched.images[number].to(views[0].images.device)
        kept = {
            "graph_view_s": _shrunk(_pictures(learner, views[0], own)),
            "graph_view_t": _shrunk(_pictures(learner, views[1], own)),
            "permutation": matched.permutation[number].numpy(),
            "permutation_first_order": matched.permutation_first_order[number].numpy(),
            "neighbors_s": matched.neighbors_s[number].numpy(),
            "neighbors_t": matched.neighbors_t[number].numpy(),
        }
        arrays.update({name + graph_suffix(number): array for name, array in kept.items()})
    return arrays


def _pictures(
    learner: Learner, view: Views, rows: slice | Int64[Tensor, " B"]
) -> UInt8[np.ndarray, "B S S 3"]:
    return denormalise(view.images[rows], learner.backbone.mean, learner.backbone.std)


def _shrunk(pictures: UInt8[np.ndarray, "B S S 3"]) -> UInt8[np.ndarray, "B s s 3"]:
    """Shrink square pictures to the side at which nodes are shown, never enlarge."""
    if pictures.shape[1] <= NODE_PX:
        return pictures
    size = (NODE_PX, NODE_PX)
    small = [Image.fromarray(one).resize(size, Image.Resampling.LANCZOS) for one in pictures]
    return np.stack([np.asarray(one) for one in small])
