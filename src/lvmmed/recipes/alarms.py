"""Alarms in words: what is wrong with a run of pre-training, and what to do about it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvmmed.ssl.advice import Advice, chance_of

COLLAPSE_RANK_FRAC = 0.1
"""Collapse is an effective rank under this share of that at step 0."""
NARROW_RANK_FRAC = 0.2
"""Share of the effective rank at step 0 under which a run that ends there is worth a word."""
COLLAPSE_STD = 0.1
"""Collapse is a feature deviation under this share of 1/sqrt(D), that of spread features."""
STARVING_FRAC = 0.3
"""Share of the time spent waiting for images from which on the loader is said to starve."""
CHANCE_FACTOR = 2.0
"""A share of images told apart under this many times chance is no better than guessing."""
FALLEN_FRAC = 0.5
"""A share of images told apart that ends at this part of that at step 0 was unlearnt."""
MIN_JUDGED = 100
"""Fewest images of the last third that the share is averaged over; fewer are right by luck."""
COLLAPSE_AGREEMENT = 0.98
"""Cosine of student and teacher over which they say the same of all images, if guesses do as well
at telling images apart."""
SATURATED_ACCURACY = 0.98
"""Matching accuracy without noise and margin from which on little is left to learn from."""
DROWNING_NOISE = 1.0
"""Deviation of the noise over that of the affinities from which on it decides matchings."""
DROWNED_EDGES = 4.0
"""The same for edges. Higher, as the default recipe stands at 1 to 2 and a lower noise on its edges
changed nothing that was measured."""
SPOILING_EDGES = 0.05
"""Share of nodes that edges spoil, less those they correct, from which on that is worth a word."""
MIN_SPOILT_ROWS, MAX_SPOILT_ROWS = 5, 10
"""Rows over which that share is averaged."""

Row = Mapping[str, Any]
"""A row of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class WatchedRun:
    """What alarms need to know of a run.

    Attributes:
        width: features of an image.
        batch_size: images of a step over all ranks.
        num_steps: length of the run.
        num_warmup: steps at its start over which the learning rate rises.
        graph_size: nodes of a graph, None for methods without graphs.
        advice: remedies of the method.
    """

    width: int
    batch_size: int
    num_steps: int
    num_warmup: int
    graph_size: int | None
    advice: Advice


def alarms(rows: Sequence[Row], run: WatchedRun) -> dict[str, str]:
    """Say in words what is wrong with a run, and what to do about it.

    Args:
        rows: of metrics so far, from step 0; the last one is judged.
        run: what is known of the run.

    Returns:
        Kind of alarm -> text; empty when all is well.

    Source:
        docs/explanation/method.md, "What to watch while it trains".
    """
    row = rows[-1]
    step, found = row["step"], _collapse_alarms(rows, run)
    wait = row.get("data_wait_frac")
    if wait is not None and step > 0 and wait > STARVING_FRAC:
        found["starving"] = (
            f"step {step}: {wait:.0%} of the time went by waiting for images; put the store on a "
            "faster disk or prepare it at a smaller --size"
        )
    return {
        **found,
        **_agreement_alarm(row, run),
        **_learning_alarm(rows, run),
        **_matching_alarms(rows, run),
    }


def _above_chance(chance: float) -> float:
    """Least share told apart that is better than guessing: among 2 or 3, half way from it to 1."""
    return min(CHANCE_FACTOR * chance, (1 + chance) / 2)


def _is_last(row: Row, run: WatchedRun) -> bool:
    return bool(row["step"] == run.num_steps - 1)


def _collapse_alarms(rows: Sequence[Row], run: WatchedRun) -> dict[str, str]:
    row, step, found = rows[-1], rows[-1]["step"], {}
    rank, start = row.get("effective_rank"), rows[0].get("effective_rank")
    if rank is not None and start:
        was = f"the effective rank is {rank:.1f} and was {start:.1f} at the start"
        if rank < COLLAPSE_RANK_FRAC * start:
            found["rank"] = f"step {step}: collapse, {was}; {run.advice.collapse}"
        elif rank < NARROW_RANK_FRAC * start and _is_last(row, run):
            found["narrow"] = (
                f"step {step}: features have narrowed, {was} ({rank / start:.0%}); "
                f"{run.advice.collapse}"
            )
    spread, least = row.get("feature_std"), COLLAPSE_STD / math.sqrt(run.width)
    if spread is not None and spread < least:
        found["spread"] = (
            f"step {step}: collapse, images look alike to the encoder (feature deviation "
            f"{spread:.2g}, least {least:.2g}); {run.advice.collapse}"
        )
    return found


def _agreement_alarm(row: Row, run: WatchedRun) -> dict[str, str]:
    """Whether student and teacher agree because both say the same of every image.

    Before the first step they are copies, and agree whatever they make of images; so rows of the
    warm-up are left out.
    """
    step, agreement = row["step"], row.get("teacher_agreement")
    accuracy = row.get("partner_accuracy")
    if agreement is None or accuracy is None or step < max(1, run.num_warmup):
        return {}
    chance = chance_of("partner_accuracy", batch_size=run.batch_size)
    if agreement <= COLLAPSE_AGREEMENT or accuracy >= _above_chance(chance):
        return {}
    return {
        "agreement": (
            f"step {step}: collapse, student and teacher agree (teacher_agreement "
            f"{agreement:.3f}) and tell no image from another (partner_accuracy {accuracy:.3f}, "
            f"chance {chance:.3f}); {run.advice.collapse}"
        )
    }


def _learning_alarm(rows: Sequence[Row], run: WatchedRun) -> dict[str, str]:
    """Whether the method tells images apart no better at the end than by guessing, or unlearnt it.

    Matchings of graphs, whose noise-free accuracy is judged at the last row, have their own alarm.
    """
    name, row = run.advice.figure, rows[-1]
    if name is None or name == "matching_accuracy" or not _is_last(row, run):
        return {}
    late = [
        one[name]
        for one in rows
        if 3 * one["step"] >= 2 * run.num_steps and one.get(name) is not None
    ]
    if len(late) * run.batch_size < MIN_JUDGED:
        return {}
    mean, start = sum(late) / len(late), rows[0].get(name)
    chance = chance_of(name, batch_size=run.batch_size)
    if mean < _above_chance(chance):
        what = f"{name} is at chance over the last third ({mean:.3f}, chance {chance:.3f})"
    elif start is not None and mean <= FALLEN_FRAC * start:
        what = (
            f"{name} was {start:.3f} at the start and is {mean:.3f} over the last third (chance "
            f"{chance:.3f})"
        )
    else:
        return {}
    return {"learning": f"step {row['step']}: does not learn, {what}; {run.advice.chance}"}


def _matching_alarms(rows: Sequence[Row], run: WatchedRun) -> dict[str, str]:
    row, graph_size = rows[-1], run.graph_size
    accuracy = row.get("matching_accuracy")
    if accuracy is None or graph_size is None:
        return {}
    step, found = row["step"], {}
    chance = chance_of("matching_accuracy", batch_size=run.batch_size, graph_size=graph_size)
    needed = _above_chance(chance)
    if _is_last(row, run) and accuracy < needed:
        found["matching"] = (
            f"step {step}: collapse, the end matches {accuracy:.2f} of the nodes, under "
            f"{needed:.2f} (chance {chance:.2f}); {run.advice.chance}"
        )
    # the whole batch, where it is matched too, goes on teaching when the graphs are solved
    right = min(accuracy, row.get("batch_accuracy", 1.0))
    if right > SATURATED_ACCURACY:
        found["saturated"] = (
            f"step {step}: {right:.0%} of the nodes are matched right without noise and margin, "
            "little is left to learn; raise method.graph_size, train.batch_size or method.margin"
        )
    late = [one for one in rows if 2 * one["step"] >= run.num_steps]
    return {**found, **_noise_alarms(row), **_edge_alarm(step, late)}


def _noise_alarms(row: Row) -> dict[str, str]:
    step, found = row["step"], {}
    on_nodes, on_edges = row.get("noise_to_affinity"), row.get("noise_to_edge_affinity")
    if on_nodes is not None and on_nodes > DROWNING_NOISE:
        found["noise"] = (
            f"step {step}: noise drowns the affinities (its deviation is {on_nodes:.2g} times "
            "theirs) and decides the matchings; lower method.noise, unless the features have "
            "collapsed"
        )
    if on_edges is not None and on_edges > DROWNED_EDGES:
        found["edge noise"] = (
            f"step {step}: noise drowns the edges (its deviation is {on_edges:.2g} times that of "
            "their affinities), so that they say nothing about the matchings; lower method.noise "
            "or raise method.edge_weight"
        )
    return found


def _edge_alarm(step: int, late: Sequence[Row]) -> dict[str, str]:
    names = ("matching_accuracy", "matching_accuracy_first_order")
    known = [row for row in late if all(row.get(name) is not None for name in names)]
    known = known[-MAX_SPOILT_ROWS:]
    if len(known) < MIN_SPOILT_ROWS:
        return {}
    with_edges, without = (sum(row[name] for row in known) / len(known) for name in names)
    if without - with_edges <= SPOILING_EDGES:
        return {}
    return {
        "edges": (
            f"step {step}: edges spoil more matches than they correct ({with_edges:.2f} of the "
            f"nodes right with them, {without:.2f} without, over {len(known)} rows); lower "
            "method.edge_weight or raise method.edge_ramp_steps"
        )
    }
