"""A complete configuration with a name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A complete configuration with a name.

    Attributes:
        name: what `--recipe` takes.
        summary: one line for lists.
        values: groups and fields; what is absent has the default of its group.
    """

    name: str
    summary: str
    values: Mapping[str, Any]
