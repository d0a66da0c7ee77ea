"""One call at a time in a folder, and what a killed one leaves."""

import subprocess
import sys

import pytest

from lvmmed.data.phantoms import write_phantoms
from lvmmed.recipes.benchmark_lock import sole_use
from lvmmed.types import InputError

HOLD = """
import sys, time
from pathlib import Path
from lvmmed.recipes.benchmark_lock import sole_use
with sole_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_call_is_refused_until_the_first_has_ended_or_was_killed(tmp_path):
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=rf"^--out: another benchmark is running in {out}; "):
            sole_use(out).__enter__()
    finally:
        other.kill()
        other.communicate()
    with sole_use(out):
        pass
    with sole_use(out):
        pass


def test_what_was_half_written_is_swept_out_and_nothing_else(tmp_path):
    gone = [
        ".table.csv.123.tmp",
        "cells/.m--t-0a1b.4567.tmp/cases.csv",
        "cells/m/.config.yaml.9.tmp",
        "cells/m/checkpoints/.step_0000001.pt.9.tmp",
    ]
    kept = [".note.tmp", "cells/m/config.yaml", "cells/m/mine.9.tmp", "store-1/.parts/0.bin.tmp"]
    for name in [*gone, *kept]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with sole_use(tmp_path):
        files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert files >= set(kept)
    assert not files & set(gone)
    assert "cells/.m--t-0a1b.4567.tmp" not in files


def test_phantoms_are_written_under_a_name_that_is_swept(tmp_path):
    names = []

    def stop(*_):
        names.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(
            tmp_path / "phantoms", num_per_class=30, num_unlabelled=4, size_px=32, progress=stop
        )
    (name,) = names
    (tmp_path / name / "phantoms" / "unlabelled").mkdir(parents=True)  # as a kill leaves it
    with sole_use(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_file_is_no_folder_for_a_benchmark(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match=r"^--out: got .*a, which is a file; give a folder"):
        sole_use(tmp_path / "a").__enter__()
