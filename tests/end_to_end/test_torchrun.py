"""Pre-training in several processes, started as the documentation says."""

import os
import subprocess
import sys

import pytest
from reference.tiny_store import write_tiny_store

SMALL = (
    "model.backbone=test_efficientnet",
    "views.size=32",
    "method.graph_size=8",
    "train.batch_size=16",
    "train.steps=2",
)


@pytest.mark.dist
@pytest.mark.slow
def test_one_of_two_processes_speaks_and_a_batch_they_cannot_share_is_refused(tmp_path):
    store = str(tmp_path / "store")
    write_tiny_store(tmp_path / "store")

    def train(*overrides):
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words += ["--nproc-per-node", "2", "-m", "lvmmed", "pretrain", "--data", store]
        words += ["--out", str(tmp_path / "run")]
        words += [word for text in (*SMALL, *overrides) for word in ("--set", text)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    refused = train("train.batch_size=24")
    assert refused.returncode != 0
    assert (
        "lvmmed: train.batch_size: got 24, need a multiple of 16 (2 processes x graphs of 8)"
        in refused.stderr
    )
    assert not (tmp_path / "run").exists()
    absent = train(f"log.probe_data={tmp_path / 'absent'}")
    assert absent.returncode != 0
    assert "absent: no such file or folder" in absent.stderr
    assert "internal error" not in absent.stderr
    done = train()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("encoder of 2 steps") == 1
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
