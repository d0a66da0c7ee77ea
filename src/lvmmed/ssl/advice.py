"""What to do when a run of a method goes wrong: each method brings its own words."""

from dataclasses import dataclass

FIGURES = ("partner_accuracy", "contrast_accuracy", "matching_accuracy")
"""Shares of images (views, nodes) that a method tells from others, with a known chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """Remedies that alarms end with; they name fields of the method's own configuration.

    Attributes:
        collapse: for features that lose their rank or spread.
        figure: share of images that the method tells from others, as `diagnostics` names it; None
            for a method that compares no images.
        chance: for a figure that does not rise above guessing; None where there is no figure.
    """

    collapse: str
    figure: str | None = "partner_accuracy"
    chance: str | None = None

    def __post_init__(self) -> None:
        """Refuse a figure whose chance is not known, and one without its remedy."""
        if self.figure is not None and self.figure not in FIGURES:
            raise ValueError(f"figure: got {self.figure!r}, need one of {', '.join(FIGURES)}")
        if (self.figure is None) != (self.chance is None):
            raise ValueError("chance: give a remedy with a figure, and none without one")


def chance_of(figure: str, *, batch_size: int, graph_size: int | None = None) -> float:
    """Share of images that guessing gets right.

    Args:
        figure: as in `Advice`.
        batch_size: images of a step over all ranks.
        graph_size: nodes of a graph, for methods with graphs; a batch of fewer is one graph.

    Returns:
        One over the candidates that a guess is made among.
    """
    if figure == "contrast_accuracy":
        return 1 / (2 * batch_size - 1)
    if figure == "matching_accuracy" and graph_size is not None:
        return 1 / min(graph_size, batch_size)
    return 1 / batch_size
