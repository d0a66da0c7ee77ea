"""Pre-training: a store of unlabelled images in, a run folder with an encoder out."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvmmed import distributed
from lvmmed.config import RunConfig
from lvmmed.data.labelled import read_labelled
from lvmmed.data.store import Store
from lvmmed.engine.device import choose_device, determinism
from lvmmed.engine.environment import code_version, device_name, environment, typed_command
from lvmmed.engine.loop import Hooks, refuse_broken_weights, train
from lvmmed.engine.run_folder import CONFIG, ENVIRONMENT, RESULT, RunFolder
from lvmmed.models.cards import lineage
from lvmmed.models.weights import save_encoder
from lvmmed.recipes.alarms import WatchedRun, alarms
from lvmmed.recipes.image_feed import ImageFeed, load_images
from lvmmed.recipes.monitoring import Monitor
from lvmmed.recipes.online_probe import OnlineProbe
from lvmmed.recipes.pretraining_recipes import RECIPES, resolve_config
from lvmmed.recipes.pretraining_samples import collect_samples
from lvmmed.recipes.pretraining_step import Learner, TrainingStep
from lvmmed.recipes.resumption import (
    WEIGHTS_SHA256,
    open_run,
    refuse_other_images,
    sole_writer,
    weights_sha256,
)
from lvmmed.recipes.run_facts import RunPlan, graph_size, plan_run, refuse_bad_recipe
from lvmmed.ssl.table import METHODS
from lvmmed.types import FORMAT_VERSION, Card, InputError

__all__ = ["RECIPES", "PretrainResult", "pretrain", "resolve_config"]

SAMPLES = "samples.npz"
CHECKPOINT_PARTS = ("model", "optimizer", "wall_s")
TAIL_FRAC = 0.1
"""Share of the run, at its end, over which figures of batches are averaged."""

Progress = Callable[[float, float, str], None]
"""Takes (steps done, steps in all, a note for the user)."""


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What a run of pre-training came to.

    Attributes:
        folder: the run folder.
        values: content of result.json.
        was_finished: True when the run had been finished before and nothing was done.
        is_main: whether this process is the one, of several, that wrote the run and speaks of it.
    """

    folder: Path
    values: Mapping[str, Any]
    was_finished: bool = False
    is_main: bool = True

    @property
    def warnings(self) -> tuple[str, ...]:
        """Alarms of the run, in words."""
        return tuple(self.values.get("warnings", ()))

    @property
    def figures(self) -> dict[str, float]:
        """Final figures by name, of batches and of watched images."""
        parts = self.values.get("metrics", {}).values()
        return {name: entry["mean"] for part in parts for name, entry in part.items()}

    def lines(self) -> list[str]:
        """Say what happened, for the command line; of several processes one speaks."""
        if not self.is_main:
            return []
        head = "this run was finished before, nothing was done; " if self.was_finished else ""
        shown = ", ".join(
            f"{name} {value:.3g}" for name, value in self.figures.items() if value is not None
        )
        return [
            f"{head}encoder of {self.values.get('num_steps')} steps, "
            f"{self.values.get('wall_s', 0.0):.0f} s on {self.values.get('device')}: {self.folder}",
            shown,
            *(f"warning: {text}" for text in self.warnings),
            f"next: lvmmed probe --weights {self.folder} --data DIR --out RUN",
        ]


def pretrain(
    config: RunConfig, out: Path, *, resume: bool = False, progress: Progress | None = None
) -> PretrainResult:
    """Learn an encoder from the unlabelled images of a store.

    Everything the user may have got wrong is checked before the folder is made. Under torchrun
    every process calls this; the first one writes.

    Args:
        config: as `resolve_config` gives it.
        out: run folder to write.
        resume: go on from the last checkpoint; on a processor the result is bit for bit that of a
            run that never stopped.
        progress: told of every step.

    Returns:
        Final figures and alarms; what they are is written to result.json as well.

    Raises:
        InputError: no store, an occupied folder, a run of other settings or one that is being
            trained, fewer images than a batch, and whatever else the user can mend.
    """
    if config.data.store is None:
        raise InputError("data.store: missing; name an image store with --data")
    wanted = choose_device(config.train.device)
    with ExitStack() as held:
        device = held.enter_context(distributed.session(str(wanted)))
        held.enter_context(determinism(config.train.deterministic))
        folder = open_run(config, out) if resume else None
        if folder is not None and folder.is_finished:
            values = folder.read_json(RESULT)
            return PretrainResult(
                folder=out, values=values, was_finished=True, is_main=distributed.is_main()
            )
        if folder is None:
            RunFolder.refuse_occupied(out, can_resume=True)
        else:
            held.enter_context(sole_writer(folder))
        store = Store.open(Path(config.data.store))
        if folder is not None:
            refuse_other_images(folder, store)
        plan = plan_run(config, store)
        refuse_bad_recipe(config, plan.facts)
        probe = _online_probe(config)
        learner = Learner(config, device, plan.facts)
        if folder is None:
            folder = _new_run(config, out, store=store, learner=learner)
            held.enter_context(sole_writer(folder))
        rows, is_pinned = plan.held_out.train, device.type == "cuda"
        feed = held.enter_context(ImageFeed(store, rows, plan.sampler, is_pinned=is_pinned))
        run = _Run(config, folder, learner, store, plan, probe)
        run.train(feed, progress)
        return run.finish()


def _online_probe(config: RunConfig) -> OnlineProbe | None:
    """Load the labelled images that are watched, on the rank that measures; all refuse alike."""
    if config.log.probe_data is None:
        return None
    if not distributed.is_main():
        read_labelled(Path(config.log.probe_data))
        return None
    return OnlineProbe(Path(config.log.probe_data), size_px=config.views.size)


def _new_run(config: RunConfig, out: Path, *, store: Store, learner: Learner) -> RunFolder:
    sha256 = weights_sha256(config.model.weights)
    facts = {
        **environment(learner.device),
        "data_fingerprint": store.fingerprint,
        **({} if sha256 is None else {WEIGHTS_SHA256: sha256}),
        "command": _command(config, out),
    }
    distributed.barrier()  # nobody looks at the folder any more
    if distributed.is_main():
        RunFolder.create(out, config_yaml=config.to_yaml(), environment=facts)
    distributed.barrier()
    return RunFolder.open(out)


def repeating_words(config: RunConfig, out: Path) -> list[str]:
    """Words of the command that makes a run again from the configuration in its folder."""
    words = ["lvmmed", "pretrain", "--recipe", str(out / CONFIG)]
    return [*words, "--data", str(config.data.store), "--out", "RUN"]


def _command(config: RunConfig, out: Path) -> str:
    return typed_command("pretrain", repeating_words(config, out))


class _Run:
    """A run under way: rows, alarms, checkpoints and results around the loop."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        learner: Learner,
        store: Store,
        plan: RunPlan,
        probe: OnlineProbe | None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.learner = learner
        self.store = store
        self.held_out = held_out = plan.held_out
        self.num_steps = plan.facts.num_steps
        self.first_step = 0
        self.wall_s = 0.0
        self.started_s = time.perf_counter()
        self.monitor: Monitor | None = None
        if distributed.is_main():
            batch = load_images(store, held_out.watched.tolist()).to(learner.device)
            self.monitor = Monitor(batch, learner.backbone, config.views, probe=probe)
        self.watched = WatchedRun(
            width=learner.backbone.width,
            batch_size=config.train.batch_size,
            num_steps=self.num_steps,
            num_warmup=round(config.train.warmup_frac * self.num_steps),
            graph_size=graph_size(config),
            advice=METHODS[config.method.name].advice,
        )
        self._take_up()
        self.rows = folder.rows()
        self.alarmed = {kind for row in self.rows for kind in row.get("alarms", ())}

    def _take_up(self) -> None:
        """Go back to the last checkpoint, if there is one, and drop the rows written after it."""
        found = self.folder.latest_checkpoint(parts=CHECKPOINT_PARTS)
        if found is not None:
            self.first_step, state = found
            self.wall_s = state["wall_s"]
            self.learner.load_state(state)
        distributed.barrier()
        if distributed.is_main():
            self.folder.forget_unfinished()
            self.folder.forget_rows_from(self.first_step)
        distributed.barrier()

    def elapsed_s(self) -> float:
        """Seconds of this run, those before a resume included."""
        return float(self.wall_s + time.perf_counter() - self.started_s)

    def train(self, feed: ImageFeed, progress: Progress | None) -> None:
        """Take the steps that are left."""
        if self.first_step == 0 and METHODS[self.config.method.name].needs_memory:
            self.learner.remember(feed)
        step_function = TrainingStep(
            self.learner, feed, self.monitor, config=self.config, num_steps=self.num_steps
        )
        hooks = Hooks(
            on_row=self.log,
            after_step=lambda step: self.learner.method.after_step(step, self.learner.backbone),
            save=self.save,
            progress=_told(progress),
        )
        train(
            step_function,
            self.learner.optimizer,
            config=self.config.train,
            num_steps=self.num_steps,
            log_every=self.config.log.every,
            first_step=self.first_step,
            hooks=hooks,
        )

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a row, with the alarms that it raises for the first time."""
        if not distributed.is_main():
            return
        found = alarms([*self.rows, row], self.watched)
        new = {kind: text for kind, text in found.items() if kind not in self.alarmed}
        self.alarmed |= set(new)
        if new:
            row = {**row, "alarms": list(new), "warnings": list(new.values())}
        self.rows.append(dict(row))
        self.folder.log(row)

    def save(self, num_done: int) -> None:
        """Write a checkpoint."""
        if distributed.is_main():
            state = {**self.learner.state(), "wall_s": self.elapsed_s()}
            self.folder.save_checkpoint(num_done, state)

    def finish(self) -> PretrainResult:
        """Write samples, encoder, card and, last, the result."""
        refuse_broken_weights(self.num_steps, self.learner.backbone.state_dict())
        chosen = self.held_out.watched
        samples = collect_samples(
            self.learner, self.store, chosen.tolist(), config=self.config, step=self.num_steps
        )
        values: dict[str, Any] = {}
        if distributed.is_main():
            if samples:
                self.folder.write_arrays(SAMPLES, samples)
            card = save_encoder(self.learner.backbone, self.folder.path, self.card())
            values = self.result(card)
            self.folder.write_json(RESULT, values)
        distributed.barrier()
        if not values:
            values = self.folder.read_json(RESULT)
        return PretrainResult(folder=self.folder.path, values=values, is_main=distributed.is_main())

    def card(self) -> Card:
        """Describe the encoder: what it has seen and where it comes from."""
        names = self.store.column("dataset")
        counts = Counter(str(names[row]) for row in self.held_out.train)
        seen = {
            name: {"licence": None, "num_images": count} for name, count in sorted(counts.items())
        }
        start = self.learner.start
        return dataclasses.replace(
            start,
            intensity_policies=dict(self.store.meta["intensity_policies"]),
            datasets={**start.datasets, **seen},
            audit=None,
            recipe=self.config.recipe,
            method=self.config.method.name,
            step=self.num_steps,
            sha256=None,
            code_version=code_version(),
            derived_from=lineage(start),
        )

    def result(self, card: Card) -> dict[str, Any]:
        """Put together what result.json says."""
        assert self.monitor is not None
        with self.learner.arithmetic():
            watched = self.monitor.measure(self.learner.backbone)
        name = "held_out" if self.held_out.is_held_out else "watched"
        num_cases = {"train": len(self.held_out.train), name: len(self.held_out.watched)}
        return {
            "format_version": FORMAT_VERSION,
            "task": "pretrain",
            "data": self.config.data.store,
            "weights": self.config.model.weights,
            "recipe": self.config.recipe,
            "method": self.config.method.name,
            "backbone": card.backbone,
            "seeds": [self.config.train.seed],
            "selected_on": None,
            "metrics": {
                "train": _entries(tail_means(self.rows, num_steps=self.num_steps)),
                name: _entries(watched),
            },
            "num_cases": num_cases,
            "num_steps": self.num_steps,
            "encoder_sha256": card.sha256,
            "warnings": [text for row in self.rows for text in row.get("warnings", ())],
            "command": self.folder.read_json(ENVIRONMENT)["command"],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_s": self.elapsed_s(),
            "device": device_name(self.learner.device),
            "precision": self.learner.precision,
            "data_fingerprint": self.store.fingerprint,
        }


def tail_means(rows: list[dict[str, Any]], *, num_steps: int) -> dict[str, float]:
    """Mean of loss, speed and accuracies over the rows of the last tenth of the run.

    Args:
        rows: all rows of the run.
        num_steps: its length.

    Returns:
        Figures by name; a name that no row of the tail has is absent.
    """
    tail = [row for row in rows if row["step"] >= (1 - TAIL_FRAC) * num_steps] or rows[-1:]
    result: dict[str, float] = {}
    for name in dict.fromkeys(key for row in tail for key in row):
        if name == "loss" or name == "images_per_s" or "accuracy" in name:
            values = [row[name] for row in tail if row.get(name) is not None]
            if values:
                result[name] = sum(values) / len(values)
    return result


def _entries(figures: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Put figures of one seed into the form of result.json; one seed has no interval."""
    return {
        name: {"mean": value, "ci95": None, "per_seed": [value]} for name, value in figures.items()
    }


def _told(progress: Progress | None) -> Callable[[int, int, float, float, float], None]:
    """Turn the figures of the loop into a note for the user, on the first rank only."""

    def tell(done: int, total: int, images_per_s: float, remaining_s: float, loss: float) -> None:
        if progress is not None and distributed.is_main():
            speed = "" if images_per_s != images_per_s else f"{images_per_s:.0f} images/s, "
            left = "" if remaining_s != remaining_s else f"{remaining_s:.0f} s left, "
            progress(done, total, f"{speed}{left}loss {loss:.4g}")

    return tell
