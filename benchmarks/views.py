"""Time the batched views against torchvision's per-image transforms, as a ratio of one run.

Every way makes the same kind of view (crop, flip, jitter, grey, blur, normalise) of the same
images on the same threads, in turns; the median of the repeats is kept. The per-image ways run
on the CPU, where they would have to run in a data loader.

    python benchmarks/views.py --images 64 --size 224
    python benchmarks/views.py --device cuda --images 256 --size 224 --out
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from lvmmed.augment.photometric import blur_radius
from lvmmed.augment.views import apply_views, draw_views, pad_images
from lvmmed.config import ViewsConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESULTS = Path(__file__).parent / "results"
BATCHED = "batched views"


def make_images(num_images: int, source_px: int, *, grey: bool) -> list[np.ndarray]:
    """Smooth random images with a longer side of up to 4/3 of the shorter."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(num_images):
        width = int(source_px * rng.uniform(1, 4 / 3))
        small = rng.integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
        smooth = Image.fromarray(small).resize((width, source_px), Image.Resampling.BICUBIC)
        images.append(np.asarray(smooth).copy())
    return images


def per_image_transform(settings: ViewsConfig) -> v2.Compose:
    """Torchvision's transform with the same settings."""
    at_size = settings.size / 224
    sigma = [value * at_size for value in settings.blur_sigma]
    kernel = 2 * blur_radius(sigma[1], size=settings.size) + 1
    jitter = [settings.brightness, settings.contrast, settings.saturation, settings.hue]
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                settings.size, scale=settings.scale, ratio=settings.ratio, antialias=True
            ),
            v2.RandomHorizontalFlip(settings.flip_probability),
            v2.RandomApply([v2.ColorJitter(*jitter)], p=settings.jitter_probability),
            v2.RandomGrayscale(settings.grey_probability),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma)], p=settings.blur_probability),
            v2.ToImage(),
            v2.RGB(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def ways_of_making_views(
    images: list[np.ndarray], settings: ViewsConfig, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Name -> function that makes one view of every image, uint8 array to normalised batch."""
    transform = per_image_transform(settings)
    pictures = [Image.fromarray(image) for image in images]
    tensors = [v2.functional.to_image(image) for image in images]
    generator = torch.Generator().manual_seed(0)

    def batched() -> None:
        batch = pad_images(images)
        parameters = draw_views(batch.sizes, settings, generator=generator).to(device)
        apply_views(batch.to(device), parameters, settings=settings, mean=MEAN, std=STD)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {
        BATCHED: batched,
        "torchvision per image, PIL": lambda: torch.stack([transform(x) for x in pictures]),
        "torchvision per image, uint8 tensor": lambda: torch.stack([transform(x) for x in tensors]),
    }


def median_seconds(ways: dict[str, Callable[[], object]], num_repeats: int) -> dict[str, float]:
    """Run all ways in turns, after one run each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(num_repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def markdown(result: dict) -> str:
    """Write a result as a table."""
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    lines = [
        f"# Views, {result['date']}",
        "",
        f"{result['device']}; {settings}; torch {result['torch']}, "
        f"torchvision {result['torchvision']}.",
        "Batched views of images in memory, padding and transfer included, against torchvision "
        "one image at a time on the CPU; medians. Load average at the end "
        f"{result['load_average']:.1f} on {result['cpus']} CPUs: the more it exceeds the threads "
        "in use, the longer the times and the rougher the ratios.",
        "",
        "| images | way | ms a view | views/s | times as fast as this |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['kind']} | {row['way']} | {row['ms_per_view']:.2f} | "
            f"{row['views_per_s']:.0f} | {row['batched_speed_ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def device_name(device: torch.device) -> str:
    """Say what the batched views ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


def measure(arguments: argparse.Namespace) -> dict:
    """Time grey and colour batches."""
    device = torch.device(arguments.device)
    settings = ViewsConfig(size=arguments.size)
    rows = []
    for kind in ("grey", "colour"):
        images = make_images(arguments.images, arguments.source, grey=kind == "grey")
        ways = ways_of_making_views(images, settings, device)
        seconds = median_seconds(ways, arguments.repeats)
        for way, value in seconds.items():
            rows.append(
                {
                    "kind": kind,
                    "way": way,
                    "ms_per_view": 1000 * value / len(images),
                    "views_per_s": len(images) / value,
                    "batched_speed_ratio": value / seconds[BATCHED],
                }
            )
    return {
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "load_average": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "settings": {
            "images": arguments.images,
            "source": arguments.source,
            "size": arguments.size,
            "repeats": arguments.repeats,
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
    }


def write(result: dict, folder: Path, stem: str) -> None:
    """Write JSON and Markdown, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(result, indent=1)), (".md", markdown(result))):
        path = folder / f"{stem}{suffix}"
        draft = path.with_suffix(f"{suffix}.part")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
        print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="of the batched views (cpu, cuda)")
    parser.add_argument("--images", type=int, default=64, help="images a batch")
    parser.add_argument("--size", type=int, default=224, help="side of a view in px")
    parser.add_argument("--source", type=int, default=256, help="short side of the images in px")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each way")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch, all ways")
    parser.add_argument(
        "--out", nargs="?", type=Path, const=RESULTS, help=f"folder to write to ({RESULTS.name}/)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    print(markdown(result))
    if arguments.out:
        stem = f"{result['date']}-views-{arguments.device.replace(':', '')}-{arguments.size}px"
        write(result, arguments.out, stem)


if __name__ == "__main__":
    main()
