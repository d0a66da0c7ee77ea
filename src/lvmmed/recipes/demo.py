"""The whole main job, small: images -> store -> encoders -> probes -> fine-tuning -> report.

On a machine with two cores and no data of its own. Images are generated phantoms, or the labelled
folder the user names. LVM-Med and SimCLR are pre-trained three times each and probed against random
weights; the summary says whether they beat them by more than the interval.
"""

import csv
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvmmed.data.labelled import read_labelled
from lvmmed.data.phantoms import write_phantoms
from lvmmed.data.prepare import prepare
from lvmmed.recipes.finetuning import FinetuneSettings, finetune
from lvmmed.recipes.labelled_images import LabelledImages, load_labelled_images
from lvmmed.recipes.pretraining import pretrain
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.probing import ProbeSettings, probe
from lvmmed.report import build_report, headline
from lvmmed.types import InputError

MARKER = "demo.json"
METHODS = ("lvm-med", "simclr")
SEEDS = (0, 1, 2)
BACKBONE = "resnet10t"
SIZE_PX = 36
STORE_SIZE_PX = 56
OVERRIDES = (
    f"model.backbone={BACKBONE}",
    f"views.size={SIZE_PX}",
    "train.batch_size=64",
    "train.steps=50",
    "log.every=10",
)
FINETUNE = FinetuneSettings(backbone=BACKBONE, size_px=SIZE_PX, epochs=6, seeds=(0,))

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSummary:
    """What the demonstration wrote and found.

    Attributes:
        report: the HTML page.
        lines: what it shows, in words.
    """

    report: Path
    lines: tuple[str, ...]


class _Stages:
    """Progress over a list of stages of about equal length."""

    def __init__(self, num_stages: int, progress: Progress | None) -> None:
        self.num_stages = num_stages
        self.num_done = 0
        self.progress = progress

    def begin(self, note: str) -> Callable[..., None]:
        """Start a stage; gives a callback (done, total, ...) for progress inside it."""
        first = self.num_done
        self.num_done += 1

        def tell(done: float, total: float, *_: object) -> None:
            if self.progress is not None:
                self.progress(first + done / max(total, 1), self.num_stages, note)

        tell(0, 1)
        return tell


def run_demo(
    out: Path, *, data: Path | None = None, progress: Progress | None = None
) -> DemoSummary:
    """Walk the main job from files to report.

    Args:
        out: folder for everything; an earlier demonstration in it is replaced.
        data: labelled images to use instead of phantoms; pre-training sees their train split only.
        progress: called with (stages done, stages, what is being done).

    Returns:
        Where the report lies and what it shows.

    Raises:
        InputError: `out` holds something else, or `data` cannot be used.
    """
    start_s = time.perf_counter()
    if data is not None:
        read_labelled(data)  # refuse before anything is removed or written
        if data.resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"--data: got {data}, which lies in {out}, whose content is replaced; give another "
                "--out"
            )
    _clear(out)
    stages = _Stages(3 + len(METHODS) * len(SEEDS) + 2 * len(METHODS) + 2, progress)
    source, labelled = _pool(out, data, stages)
    store = out / "store"
    prepare([source], store, size=STORE_SIZE_PX, workers=None, progress=stages.begin("prepare"))
    images = load_labelled_images(labelled, size_px=SIZE_PX)
    pretrained = {name: _pretrain_all(name, out, store, stages) for name in METHODS}
    probes = _probe_all(pretrained, images, out, stages)
    tuned = _finetune_all(pretrained, images, out, stages)
    stages.begin("report")
    runs = [run for group in pretrained.values() for run in group]
    runs += [*probes.values(), *tuned]
    report = build_report(runs, out / "report.html", title="lvmmed demonstration")
    seconds = time.perf_counter() - start_s
    lines = [*headline(runs), f"report: {report} ({seconds:.0f} s in all)"]
    return DemoSummary(report=report, lines=tuple(lines))


def _clear(out: Path) -> None:
    """Make an empty folder of `out`; only an earlier demonstration is removed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise InputError(f"{out}: not empty and no earlier demo; give another --out")
        shutil.rmtree(out.resolve())  # of a link what it names
    out.resolve().mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(json.dumps({"written_by": "lvmmed demo"}) + "\n", encoding="utf-8")


def _pool(out: Path, data: Path | None, stages: _Stages) -> tuple[str, Path]:
    """Unlabelled source to prepare, and labelled images to judge on."""
    if data is None:
        tell = stages.begin("generate phantoms")
        write_phantoms(out / "phantoms", seed=0)
        tell(1, 1)
        return str(out / "phantoms" / "unlabelled" / "index.csv"), out / "phantoms" / "labelled"
    stages.begin("list images")
    items = read_labelled(data).split("train")
    with (out / "pool.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group"])
        writer.writerows([item.path.resolve(), item.group] for item in items)
    return str(out / "pool.csv"), data


def _pretrain_all(name: str, out: Path, store: Path, stages: _Stages) -> list[Path]:
    """Pre-train one method once for every seed."""
    runs = []
    for seed in SEEDS:
        config = resolve_config(name, [*OVERRIDES, f"train.seed={seed}"], store=str(store))
        run = out / "runs" / f"{name}-seed{seed}"
        pretrain(config, run, progress=stages.begin(f"pre-train {name}, seed {seed}"))
        runs.append(run)
    return runs


def _probe_all(
    pretrained: dict[str, list[Path]], images: LabelledImages, out: Path, stages: _Stages
) -> dict[str, Path]:
    """Probe random weights and every method, three encoders each."""
    probes = {}
    settings = ProbeSettings(backbone=BACKBONE, size_px=SIZE_PX, seeds=SEEDS)
    weights: dict[str, str | Sequence[str]] = {"random": "random"}
    weights |= {name: [str(run) for run in runs] for name, runs in pretrained.items()}
    for name, source in weights.items():
        probes[name] = out / "runs" / f"probe-{name}"
        tell = stages.begin(f"probe {name}")
        probe(source, images, probes[name], settings=settings, progress=tell)
    return probes


def _finetune_all(
    pretrained: dict[str, list[Path]], images: LabelledImages, out: Path, stages: _Stages
) -> list[Path]:
    """Fine-tune from random weights and from the first LVM-Med encoder."""
    tuned = []
    for name, weights in (("random", "random"), ("lvm-med", str(pretrained["lvm-med"][0]))):
        run = out / "runs" / f"finetune-{name}"
        tell = stages.begin(f"fine-tune {name}")
        finetune("classification", images, weights, run, settings=FINETUNE, progress=tell)
        tuned.append(run)
    return tuned
