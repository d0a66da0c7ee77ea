"""What the results of `solver_gpu.py` are of: the sources that were measured, by their hash.

The Triton kernel is believed only as far as its newest dated result goes. CI compares that result
with the sources of today and fails where they differ.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from lvmmed.matching import triton_search

RESULTS = Path(__file__).parent / "results"
SOURCES = tuple(
    Path(triton_search.__file__).with_name(name)
    for name in ("triton_kernel.py", "triton_search.py", "tabu.py", "terms.py")
)
"""The kernel, what calls it, the search it must equal and the table that it reads."""


def hash_sources(sources: Sequence[Path] = SOURCES) -> str:
    """Hash by which a test knows that this kernel and this torch search were measured."""
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    return hashlib.sha256(text.encode()).hexdigest()


def newest_result(results: Path = RESULTS) -> Path | None:
    """Give the last dated result from a GPU, None where there is none."""
    return max(results.glob("*-solver-gpu.json"), default=None)


def complaints(result: Path, sources: Sequence[Path] = SOURCES) -> list[str]:
    """Say why a result does not speak for these sources; nothing where it does."""
    facts = json.loads(result.read_text(encoding="utf-8"))
    said = []
    if facts.get("sources_sha256") != hash_sources(sources):
        names = ", ".join(path.name for path in sources)
        said.append(
            f"{result.name} is of other sources than today's ({names}): run "
            "benchmarks/solver_gpu.py on a GPU again"
        )
    if facts.get("check", {}).get("is_right") is not True:
        said.append(f"{result.name} does not say that the kernel was right")
    return said
