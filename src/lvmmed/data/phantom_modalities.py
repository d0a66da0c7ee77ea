"""Anatomy, noise and grey scale of the generated pictures, one function a modality.

Each takes a subject and its lesion and returns a picture in the units that files of that modality
hold. None of them looks at the class.

Letters used in shapes:
    S: side of a picture in pixels.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int16, Shaped, UInt8, UInt16
from scipy import ndimage

from lvmmed.data.phantom_shapes import Lesion, Subject, smooth_noise

Draw = Callable[[Subject, Lesion, np.random.Generator], Shaped[np.ndarray, "S S *C"]]

AIR_HU, FAT_HU, SOFT_HU, BONE_HU = -1000.0, -100.0, 40.0, 600.0


def _ellipse(
    size_px: int, center: tuple[float, float], axes: tuple[float, float]
) -> Bool[np.ndarray, "S S"]:
    """Fill an ellipse; centre (x, y) and half axes are shares of the side."""
    rows, cols = (np.mgrid[:size_px, :size_px] + 0.5) / size_px
    return np.asarray(((cols - center[0]) / axes[0]) ** 2 + ((rows - center[1]) / axes[1]) ** 2 < 1)


def draw_ct(
    subject: Subject, lesion: Lesion, generator: np.random.Generator
) -> Int16[np.ndarray, "S S"]:
    """Slice of a trunk in Hounsfield units: fat rim, organs, spine, quantum noise."""
    size = len(lesion.weight)
    wide, high = generator.uniform(0.42, 0.49), generator.uniform(0.38, 0.46)
    body = _ellipse(size, (0.5, 0.5), (wide, high))
    muscle = _ellipse(size, (0.5, 0.5), (wide - 0.04, high - 0.04))
    spine = _ellipse(size, (0.5, 0.5 + 0.75 * high), (0.07, 0.06))
    hu = np.where(body, FAT_HU, AIR_HU)
    hu = np.where(muscle, SOFT_HU + 25 * smooth_noise(size, 0.08, generator), hu)
    hu = np.where(spine, BONE_HU, hu)
    hu = ndimage.gaussian_filter(hu, 0.7)
    inner = SOFT_HU + 45 * subject.offset + 55 * subject.contrast * lesion.texture
    hu = hu + lesion.weight * (inner - hu)
    hu += 25 * subject.brightness * muscle
    hu += 28 * generator.standard_normal((size, size))
    return np.clip(np.rint(hu), -1024, 3000).astype(np.int16)


def draw_mri(
    subject: Subject, lesion: Lesion, generator: np.random.Generator
) -> Int16[np.ndarray, "S S"]:
    """Slice of a head in arbitrary units: skull, folded cortex, coil shading, Rician noise."""
    size = len(lesion.weight)
    wide, high = generator.uniform(0.36, 0.44), generator.uniform(0.42, 0.48)
    head = _ellipse(size, (0.5, 0.5), (wide, high))
    brain = _ellipse(size, (0.5, 0.5), (wide - 0.05, high - 0.05))
    folds = np.abs(smooth_noise(size, 0.025, generator))
    signal = np.where(head, 0.75, 0.02)
    signal = np.where(brain, 0.55 - 0.09 * folds, signal)
    inner = 0.48 + 0.15 * subject.offset + 0.13 * subject.contrast * lesion.texture
    signal = signal + lesion.weight * (inner - signal)
    shading = np.exp(0.15 * smooth_noise(size, 0.3, generator) + 0.2 * subject.brightness)
    noise = 0.06 * generator.standard_normal((2, size, size))
    magnitude = np.hypot(signal * shading + noise[0], noise[1])
    return np.asarray(np.clip(np.rint(1100 * magnitude), 0, 32000), dtype=np.int16)


def draw_xray(
    subject: Subject, lesion: Lesion, generator: np.random.Generator
) -> UInt16[np.ndarray, "S S"]:
    """Chest film, 16 bit: dark lungs, bright mediastinum, curved ribs, film noise."""
    size = len(lesion.weight)
    rows, cols = (np.mgrid[:size, :size] + 0.5) / size
    gap, high = generator.uniform(0.2, 0.25), generator.uniform(0.34, 0.42)
    lungs = _ellipse(size, (0.5 - gap, 0.5), (0.17, high))
    lungs |= _ellipse(size, (0.5 + gap, 0.5), (0.17, high))
    density = ndimage.gaussian_filter(np.where(lungs, 0.32, 0.62), 0.02 * size)
    bend = generator.uniform(0.5, 0.9) * np.abs(cols - 0.5) ** 1.5
    ribs = np.cos(2 * np.pi * ((rows + bend) * generator.uniform(6, 8) + generator.uniform()))
    density += 0.05 * np.clip(ribs, 0, 1) + 0.04 * smooth_noise(size, 0.05, generator)
    added = 0.06 * subject.offset + 0.085 * subject.contrast * lesion.texture
    density = density + lesion.weight * (0.45 - density) * 0.7 + lesion.weight * added
    density += 0.08 * subject.brightness + 0.035 * generator.standard_normal((size, size))
    return np.clip(np.rint(3000 + 42000 * density), 0, 65535).astype(np.uint16)


def draw_ultrasound(
    subject: Subject, lesion: Lesion, generator: np.random.Generator
) -> UInt8[np.ndarray, "S S"]:
    """Fan-shaped echo picture: layers, attenuation with depth, log-compressed speckle."""
    size = len(lesion.weight)
    rows, cols = (np.mgrid[:size, :size] + 0.5) / size
    depth = np.hypot(cols - 0.5, rows + 0.25)
    spread = np.abs(np.arctan2(cols - 0.5, rows + 0.25))
    fan = (spread < generator.uniform(0.5, 0.62)) & (depth > 0.27) & (depth < 1.22)
    layers = 0.3 * np.cos(2 * np.pi * depth * generator.uniform(2, 4) + generator.uniform(0, 6))
    echo = 0.3 * layers + 0.25 * smooth_noise(size, 0.07, generator)
    inner = 0.5 * subject.offset + 0.62 * subject.contrast * lesion.texture
    echo = echo + lesion.weight * (inner - echo)
    waves = generator.standard_normal((2, size, size))
    speckle = np.hypot(*(ndimage.gaussian_filter(wave, (0.7, 1.0)) for wave in waves))
    level = np.log(speckle + 0.02) - float(np.log(speckle + 0.02).mean())
    grey = 115 + 48 * echo + 26 * level - 45 * (depth - 0.7) + 22 * subject.brightness
    return np.clip(np.rint(np.where(fan, grey, 4)), 0, 255).astype(np.uint8)


def draw_histology(
    subject: Subject, lesion: Lesion, generator: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """Stained section in colour: pink ground, violet nuclei, uneven stain."""
    size = len(lesion.weight)
    nuclei = smooth_noise(size, 0.018, generator) > generator.uniform(1.4, 1.9)
    violet = 0.25 + 0.1 * smooth_noise(size, 0.06, generator)
    violet += 0.5 * ndimage.gaussian_filter(nuclei.astype(np.float64), 0.6)
    inner = 0.38 + 0.14 * subject.offset + 0.17 * subject.contrast * lesion.texture
    violet = violet + lesion.weight * (inner - violet) * 0.85
    pink = 0.35 + 0.08 * smooth_noise(size, 0.1, generator) + 0.12 * subject.brightness
    # Optical density of the two stains in red, green and blue.
    tint = np.array([[0.65, 0.70, 0.29], [0.12, 0.72, 0.28]]) + generator.normal(0, 0.03, (2, 3))
    stains = np.stack([np.clip(violet, 0, 2), np.clip(pink, 0, 2)], axis=-1)
    colour = 245 * np.exp(-1.3 * stains @ tint)
    colour += 7 * generator.standard_normal((size, size, 3))
    return np.asarray(np.clip(np.rint(colour), 0, 255), dtype=np.uint8)


DRAW: dict[str, Draw] = {
    "CT": draw_ct,
    "MRI": draw_mri,
    "X-ray": draw_xray,
    "ultrasound": draw_ultrasound,
    "histology": draw_histology,
}
"""Modality -> the function that draws it."""
