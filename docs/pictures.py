"""Make the pictures of docs/explanation/method.md, and figures.json with the numbers in them.

Run `python docs/pictures.py` after a change of the method; it takes a minute and a half on one
processor core. Images are generated phantoms, the encoder is trained for `NUM_STEPS` steps on them,
and the pictures show images that it has not seen. Everything is seeded: the same versions on the
same machine give the same bytes.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from lvmmed.augment.views import Views, denormalise
from lvmmed.data.phantoms import write_phantoms
from lvmmed.data.prepare import prepare
from lvmmed.data.store import Store
from lvmmed.matching.affinity import edge_affinity, global_affinity, local_affinity, unit_vectors
from lvmmed.matching.graph import Problem, knn_graph
from lvmmed.matching.imle import draw_gumbel, matching_loss
from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.message_passing import MessagePassing
from lvmmed.recipes.image_feed import draw_of, load_images, owners
from lvmmed.recipes.monitoring import choose_held_out
from lvmmed.recipes.pretraining import pretrain, resolve_config
from lvmmed.recipes.pretraining_step import Learner
from lvmmed.recipes.run_facts import run_facts
from lvmmed.report.matching_picture import draw_matchings
from lvmmed.report.pictures import MatchedGraph, matched_graphs_of
from lvmmed.ssl.lvm_med import LvmMed
from lvmmed.ssl.noise_free import MatchedGraphs, solve_noise_free

IMAGES = Path(__file__).parent / "explanation" / "images"
NUM_STEPS, NUM_PHANTOMS = 90, 1400
SETTINGS = (
    "model.backbone=resnet10t",
    "views.size=48",
    "train.batch_size=64",
    "train.device=cpu",
    "log.every=20",
)
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#c94f00", "#00805c", "#a0478a"
INK, SOFT, PALE = "#1a2027", "#59646f", "#c3cbd2"
DRAWING = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "text.parse_math": False,
}
Figures = dict[str, float | int]


@dataclass(frozen=True)
class State:
    """One encoder's look at the images: what the steps of the method make of them."""

    backbone: Backbone
    method: LvmMed
    views: list[Views]
    features: list[Features]

    @property
    def size(self) -> int:
        """Nodes of a graph."""
        return self.method.config.graph_size

    def graphs(self, rows: Tensor) -> Tensor:
        """Cut rows, one an image, into graphs."""
        return rows.unflatten(0, (-1, self.size))

    def nodes(self) -> list[Tensor]:
        """Centred projections of both views, as graphs."""
        return [self.graphs(self.method.projector(one.pooled)) for one in self.features]

    def problem(self) -> Problem:
        """The matching problems, step by step as the method builds them."""
        config, nodes = self.method.config, self.nodes()
        neighbors = [knn_graph(one, config.neighbors) for one in nodes]
        passed = [
            self.method.message_passing(one, near)
            for one, near in zip(nodes, neighbors, strict=True)
        ]
        maps = [self.graphs(one.map.flatten(2).transpose(1, 2)) for one in self.features]
        side = self.features[0].map.shape[-1]
        centers = [
            self.graphs(view.region_centers(side, side).flatten(1, 2)) for view in self.views
        ]
        local = local_affinity(*maps, *centers, best_frac=config.local_best_frac)
        vertex = config.alpha * global_affinity(*passed) + (1 - config.alpha) * local
        return Problem(
            vertex_affinity=vertex,
            edge_affinity=config.edge_weight * edge_affinity(*passed, *neighbors),
            neighbors_s=neighbors[0],
            neighbors_t=neighbors[1],
        )

    def matched(self) -> MatchedGraphs:
        """Matchings without noise and margin."""
        return solve_noise_free(self.problem(), restarts=16, iterations=60)

    def picture(self, view: int, image: int) -> np.ndarray:
        """An image of a view as it looks to people."""
        images = self.views[view].images[image : image + 1]
        return denormalise(images, self.backbone.mean, self.backbone.std)[0]


@torch.no_grad()
def make_states(folder: Path) -> tuple[State, State, list[np.ndarray]]:
    """Train, and look at held-out images with the encoder before and after; and those images."""
    phantoms = write_phantoms(
        folder / "phantoms", num_per_class=30, num_unlabelled=NUM_PHANTOMS, size_px=72
    )
    prepare([str(phantoms.unlabelled)], folder / "store", size=64, workers=0)
    settings = [*SETTINGS, f"train.steps={NUM_STEPS}"]
    config = resolve_config("lvm-med", settings, store=str(folder / "store"))
    with torch.enable_grad():
        pretrain(config, folder / "run")
    store = Store.open(folder / "store")
    held_out = choose_held_out(owners(store))
    assert held_out.is_held_out
    chosen = np.random.default_rng(0).permutation(held_out.watched)[:128].tolist()
    batch = load_images(store, chosen)
    draw = draw_of(batch)
    facts = run_facts(config, num_images=len(held_out.train), steps_per_epoch=1)
    states = []
    for checkpoint in (None, folder / "run" / "checkpoints" / f"step_{NUM_STEPS:07d}.pt"):
        learner = Learner(config, torch.device("cpu"), facts)
        if checkpoint is not None:
            learner.load_state(torch.load(checkpoint, weights_only=True))
        assert isinstance(learner.method, LvmMed)
        views = learner.views(draw, step=0, stream="pictures")
        states.append(State(learner.backbone, learner.method, views, learner.encode(views)))
    matched = states[1].method.matching_of(states[1].views, states[1].features, step=NUM_STEPS)
    assert torch.equal(matched.neighbors_s, states[1].problem().neighbors_s)
    return states[0], states[1], [store.image(row) for row in chosen]


def draw_views(state: State, originals: list[np.ndarray]) -> Figures:
    """Images with the boxes of their crops, and the two views."""
    figure = Figure(figsize=(6.4, 4.1))
    shown = _one_of_each_look(originals, 5)
    grid = figure.subplots(3, len(shown), gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    for column, image in enumerate(shown):
        _show(grid[0, column], originals[image])
        for view, (colour, style) in enumerate(((BLUE, "-"), (ORANGE, (0, (4, 2))))):
            x0, y0, x1, y1 = state.views[view].crops.box[image].tolist()
            frame = {"fill": False, "edgecolor": colour, "linestyle": style, "linewidth": 1.8}
            grid[0, column].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, clip_on=False, **frame))
            axes = grid[1 + view, column]
            _show(axes, state.picture(view, image))
            side = state.views[view].images.shape[-1]
            axes.add_patch(Rectangle((0, 0), side, side, clip_on=False, **frame))
            if state.views[view].crops.flipped[image]:
                axes.text(0.04, 0.05, "mirrored", transform=axes.transAxes, fontsize=7, **_BOXED)
    for row, text in enumerate(("image, crops", "view s", "view t")):
        grid[row, 0].set_ylabel(text)
    _save(figure, "views.png")
    return {"views.images": len(shown)}


_BOXED = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}}


def _one_of_each_look(images: list[np.ndarray], num: int) -> list[int]:
    """Choose images that differ most in mean and contrast: one of each modality, roughly."""
    looks = np.array(
        [[*image.mean((0, 1), keepdims=True).ravel()[:1], image.std()] for image in images]
    )
    chosen = [0]
    while len(chosen) < num:
        distance = np.abs(looks[:, None] - looks[chosen][None]).sum(2).min(1)
        chosen.append(int(distance.argmax()))
    return chosen


def draw_graphs(state: State, graph: int) -> Figures:
    """Both graphs of one set of images on circles, edges of both graphs dark."""
    matched = state.problem()
    edges = [
        {(node, int(head)) for node, row in enumerate(near[graph]) for head in row}
        for near in (matched.neighbors_s, matched.neighbors_t)
    ]
    both = edges[0] & edges[1]
    figure = Figure(figsize=(7.6, 4.1))
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.02})
    angles = np.pi / 2 - 2 * np.pi * np.arange(state.size) / state.size
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for view, axes in enumerate(panels):
        for pair in sorted(edges[view], key=lambda pair: pair in both):
            colour, width = (INK, 1.3) if pair in both else (PALE, 0.8)
            axes.plot(
                *places[list(pair)].T, color=colour, linewidth=width, zorder=int(pair in both)
            )
        for node, (x, y) in enumerate(places):
            picture = state.picture(view, graph * state.size + node)
            axes.imshow(picture, extent=(x - 0.135, x + 0.135, y - 0.135, y + 0.135), zorder=3)
            axes.text(*(1.25 * places[node]), str(node + 1), ha="center", va="center", color=SOFT)
        axes.set(xlim=(-1.33, 1.33), ylim=(-1.33, 1.33), aspect="equal")
        axes.set_title(f"graph of view {'st'[view]}")
        axes.axis("off")
    _save(figure, "graphs.png")
    return {"graphs.edges": len(edges[0]), "graphs.edges_in_both": len(both)}


def draw_affinities(before: State, after: State, graph: int) -> Figures:
    """Vertex affinities of one graph before and after training."""
    figure = Figure(figsize=(7.2, 3.6))
    panels = figure.subplots(1, 2)
    found: Figures = {}
    tables = [state.problem().vertex_affinity[graph].numpy() for state in (before, after)]
    low, high = min(table.min() for table in tables), max(table.max() for table in tables)
    for axes, table, name in zip(panels, tables, ("untrained", "trained"), strict=True):
        image = axes.imshow(table, vmin=low, vmax=high, cmap="cividis")
        best = table.argmax(1)
        rows = np.arange(len(table))
        is_right = best == rows
        axes.plot(best[is_right], rows[is_right], "o", color="white", markeredgecolor=INK)
        axes.plot(best[~is_right], rows[~is_right], "X", color=ORANGE, markeredgecolor="white")
        state = "untrained" if name == "untrained" else f"after {NUM_STEPS} steps"
        rest = "rows have\ntheir largest value on the diagonal"
        axes.set_title(f"{state}: {is_right.sum()} of {len(table)} {rest}")
        axes.set_xlabel("node of view t")
        axes.set_xticks(rows[::3], rows[::3] + 1)
        axes.set_yticks(rows[::3], rows[::3] + 1)
        axes.spines[:].set_visible(False)
        found[f"affinity.{name}.rows_right"] = int(is_right.sum())
    panels[0].set_ylabel("node of view s")
    figure.colorbar(image, ax=panels, shrink=0.85, label="vertex affinity")
    _save(figure, "affinity.png")
    return found


def draw_matching(state: State, graph: int) -> Figures:
    """One graph matched, as `lvmmed inspect --matching` draws it."""
    title = f"held-out phantoms, after {NUM_STEPS} steps"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matching.png"
        draw_matchings([_drawable(state, graph)], path, title=title)
        with Image.open(path) as image:
            size = (round(0.66 * image.width), round(0.66 * image.height))
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            _write_small(small, "matching.png")
    matched = state.matched()
    is_right = matched.permutation == torch.arange(state.size)
    was_right = matched.permutation_first_order == torch.arange(state.size)
    return {
        "matching.nodes": is_right.numel(),
        "matching.right_with_edges": round(matched.accuracy, 3),
        "matching.right_first_order": round(matched.accuracy_first_order, 3),
        "matching.corrected": int((is_right & ~was_right).sum()),
        "matching.spoilt": int((~is_right & was_right).sum()),
    }


def _drawable(state: State, graph: int) -> MatchedGraph:
    matched = state.matched()
    images = range(graph * state.size, (graph + 1) * state.size)
    arrays = {
        f"graph_view_{'st'[view]}": [state.picture(view, i) for i in images] for view in (0, 1)
    }
    arrays |= {
        "permutation": matched.permutation[graph],
        "permutation_first_order": matched.permutation_first_order[graph],
        "neighbors_s": matched.neighbors_s[graph],
        "neighbors_t": matched.neighbors_t[graph],
    }
    return matched_graphs_of({k: np.asarray(v) for k, v in arrays.items()}, Path("pictures"))[0]


def draw_noise(state: State, graph: int) -> Figures:
    """One row of the affinities under margin and noise; and how many nodes match right under it."""
    problem = state.problem()
    table = problem.vertex_affinity[graph].numpy()
    own = np.eye(len(table), dtype=bool)
    lead = table[own] - np.where(own, -np.inf, table).max(1)
    node = int(lead.argmax())
    row = table[node]
    noise = draw_gumbel(row.shape, generator=torch.Generator().manual_seed(0), device="cpu").numpy()
    own = np.arange(len(row)) == node
    figure = Figure(figsize=(7.2, 2.9))
    panels = figure.subplots(1, 4, sharey=True)
    found: Figures = {}
    for axes, (scale, margin) in zip(panels, ((0, 0), (0.05, 0), (1, 0), (0.05, 1)), strict=True):
        values = row + scale * noise - margin * own
        axes.bar(np.arange(len(row)), values, color=np.where(own, BLUE, PALE), width=0.8)
        best = int(values.argmax())
        mark = {"marker": "v", "color": BLUE if own[best] else ORANGE, "markersize": 7}
        axes.plot([best], [max(values[best], 0) + 0.16], linestyle="none", **mark)
        axes.axhline(0, color=SOFT, linewidth=0.6)
        share = perturbed_accuracy(problem, noise=scale, margin=margin)
        found[f"noise.{scale}.margin.{margin}"] = round(share, 3)
        text = {0: "as it is", 0.05: "noise of 0.05", 1: "noise of 1 (printed)"}[scale]
        text = text if not margin else f"{text},\nmargin of 1 (lvm-med)"
        axes.set_title(text if margin else f"{text}\n")
        axes.set_xlabel(f"node of view t\n\n{share:.0%} of nodes\nmatched right")
        axes.set_xticks([])
    panels[0].set_ylabel(f"affinity to node {node + 1} of view s")
    _save(figure, "noise.png")
    return found


def perturbed_accuracy(problem: Problem, *, noise: float, margin: float) -> float:
    """Share of nodes that are matched right under noise and margin, over 20 draws."""
    generator = torch.Generator().manual_seed(0)
    size = problem.vertex_affinity.shape[1]
    shares = []
    for _ in range(20 if noise else 1):
        result = matching_loss(
            problem.vertex_affinity,
            problem.edge_affinity,
            problem.neighbors_s,
            problem.neighbors_t,
            noise=noise,
            margin=margin,
            lambda_=math.inf,
            generator=generator,
        )
        shares.append(1 - float(result.hamming.mean()) / (2 * size))
    return float(np.mean(shares))


def draw_centring(state: State) -> Figures:
    """Cosines of different images before and after centring, untrained."""
    linear = state.method.projector.layers[0]
    plain, centred = (
        linear(state.features[0].pooled),
        state.method.projector(state.features[0].pooled),
    )
    curves = {"plain": _cosines(plain[None]), "centred": _cosines(centred[None])}
    labels = {"plain": "projections as printed", "centred": "centred over the batch (lvm-med)"}
    _draw_histogram(
        curves, labels, "centring.png", "cosine of two different images, untrained encoder"
    )
    found = {f"centring.{name}.mean": round(float(x.mean()), 3) for name, x in curves.items()}
    return {**found, **{f"centring.{k}.std": round(float(x.std()), 3) for k, x in curves.items()}}


def draw_smoothing(state: State) -> Figures:
    """Cosines of different nodes of a graph before and after message passing, untrained."""
    nodes_s, nodes_t = state.nodes()
    width = nodes_s.shape[-1]
    curves, found = {}, {}
    for name in ("before", "plain", "residual"):
        passed = [nodes_s, nodes_t]
        if name != "before":
            layers = MessagePassing(
                width, residual=name == "residual", generator=torch.Generator().manual_seed(0)
            )
            near = [knn_graph(one, state.method.config.neighbors) for one in passed]
            passed = [layers(one, heads) for one, heads in zip(passed, near, strict=True)]
        curves[name] = _cosines(passed[0])
        affinity = global_affinity(*passed)
        is_right = affinity.argmax(2) == torch.arange(state.size)
        found[f"smoothing.{name}.mean"] = round(float(curves[name].mean()), 3)
        found[f"smoothing.{name}.nearest_is_own"] = round(float(is_right.float().mean()), 3)
    labels = {
        "before": "before message passing",
        "plain": "after, as printed",
        "residual": "after, with a residual (lvm-med)",
    }
    _draw_histogram(
        curves, labels, "smoothing.png", "cosine of two different nodes of a graph, untrained"
    )
    return found


def _cosines(nodes: Tensor) -> np.ndarray:
    """Cosines of all pairs of different nodes of each graph."""
    unit = unit_vectors(nodes)
    pairs = torch.triu_indices(nodes.shape[1], nodes.shape[1], offset=1)
    return (unit @ unit.transpose(1, 2))[:, pairs[0], pairs[1]].flatten().numpy()


def _draw_histogram(
    curves: dict[str, np.ndarray], labels: dict[str, str], name: str, xlabel: str
) -> None:
    figure = Figure(figsize=(7.2, 2.6))
    axes = figure.subplots()
    bins = np.linspace(-1, 1, 81)
    styles = (
        ((ORANGE, "-"), (BLUE, "--"))
        if len(curves) == 2
        else ((SOFT, ":"), (ORANGE, "-"), (BLUE, "--"))
    )
    for (key, values), (colour, style) in zip(curves.items(), styles, strict=True):
        share = np.histogram(values, bins)[0] / len(values)
        axes.stairs(share, bins, color=colour, linestyle=style, linewidth=1.8, label=labels[key])
        axes.stairs(share, bins, color=colour, fill=True, alpha=0.15)
    axes.set(xlabel=xlabel, ylabel="share of pairs", xlim=(-1, 1))
    axes.legend(frameon=False, loc="upper left")
    _save(figure, name)


def _show(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _save(figure: Figure, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
        with Image.open(path) as image:
            _write_small(image.convert("RGB"), name)


def _write_small(image: Image.Image, name: str) -> None:
    """Write a PNG of 192 colours, which these pictures get by with."""
    small = image.quantize(192, dither=Image.Dither.NONE)
    small.save(IMAGES / name, optimize=True)


def richest_graph(state: State) -> int:
    """The graph with the most kinds of matches (right, wrong, corrected, spoilt)."""
    num = len(state.matched().permutation)
    counts = []
    for graph in range(num):
        drawn = _drawable(state, graph)
        kinds = [drawn.count(kind) for kind in ("corrected", "spoilt", "wrong", "right")]
        counts.append((sum(count > 0 for count in kinds), drawn.count("corrected")))
    return counts.index(max(counts))


def main() -> None:
    """Make all pictures."""
    torch.set_num_threads(1)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), mpl.rc_context(DRAWING):
        before, after, originals = make_states(Path(folder))
        graph = richest_graph(after)
        steps: list[Callable[[], Figures]] = [
            lambda: draw_views(after, originals),
            lambda: draw_graphs(after, graph),
            lambda: draw_affinities(before, after, graph),
            lambda: draw_matching(after, graph),
            lambda: draw_noise(after, graph),
            lambda: draw_centring(before),
            lambda: draw_smoothing(before),
        ]
        figures: Figures = {"steps": NUM_STEPS}
        for step in steps:
            figures.update(step())
    text = json.dumps(figures, indent=1) + "\n"
    (IMAGES / "figures.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
