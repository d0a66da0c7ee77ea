"""Parts of a preparation; the rest of their behaviour is tested through `prepare`."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.mark.slow
def test_a_script_without_a_main_guard_ends_with_the_remedy(tmp_path):
    # a started process runs the script again, and cannot start processes of its own
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(pictures / "a.png")
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom lvmmed.data.prepare import prepare\n"
        f"prepare([{str(pictures)!r}], Path({str(tmp_path / 'store')!r}), workers=1)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "no process could start; use workers=0" in ended.stderr.splitlines()[-1]
