"""What the two-process test of tests/recipes/test_pretraining.py runs in each rank."""

from pathlib import Path

from safetensors.torch import load_file

from lvmmed.engine.run_folder import RunFolder
from lvmmed.recipes.pretraining import pretrain, resolve_config


def pretrain_tiny(store, out, words):
    """Pre-train in every rank; returns the rows and weights that the first rank wrote."""
    config = resolve_config("lvm-med", words, store=store)
    result = pretrain(config, Path(out))
    return {
        "rows": RunFolder.open(Path(out)).rows(),
        "weights": load_file(Path(out) / "encoder.safetensors"),
        "figures": result.figures,
    }
