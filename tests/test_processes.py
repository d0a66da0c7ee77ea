"""A process that works for another one ends with it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PREPARE = """
import sys, time
from lvmmed.data import parts
real = parts.read_file
def slow(*words, **named):
    time.sleep(0.5)
    return real(*words, **named)
parts.read_file = slow
from lvmmed.cli import run_command
if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
"""


def _children(parent):
    """Ids of the processes that a process started, from /proc."""
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(word) for word in listed.read_text().split()] if listed.exists() else []


def _is_alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _wait(is_so, *, seconds):
    end_s = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_workers_of_a_preparation_end_with_it(tmp_path, kind):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(256):  # eight parts, of 16 s each
        pixels = rng.integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number:03d}.png")
    script = tmp_path / "script.py"
    script.write_text(PREPARE)
    out = tmp_path / "store"
    words = ["prepare", str(pictures), "--out", str(out), "--size", "24", "--workers", "2"]
    parent = subprocess.Popen([sys.executable, str(script), *words])
    _wait(lambda: len(list(out.glob(".parts/*.current"))) == 2, seconds=60)
    children = _children(parent.pid)
    assert len(children) >= 2
    parent.send_signal(kind)
    assert parent.wait() == -kind
    _wait(lambda: not any(map(_is_alive, children)), seconds=10)
