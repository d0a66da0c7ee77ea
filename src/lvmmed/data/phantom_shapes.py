"""Lesions of the generated pictures: four classes that differ in texture and outline.

Area, mean grey and the histogram inside the lesion are the same for all classes; contrast,
brightness, place, scale and noise vary within each. The cues (direction and spacing of a texture,
smooth lobes or spicules) survive crops, left-right flips and changes of contrast.

Letters used in shapes:
    S: side of a picture in pixels.
    n: pixels of a lesion.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage, special

MODALITIES = ("CT", "MRI", "X-ray", "ultrasound", "histology")
"""Modalities that are imitated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What makes a class.

    Attributes:
        texture: spots without direction, or stripes that run across or down the picture.
        wavelength_frac: range of the distance between spots or stripes, as a share of the side.
        is_spiculated: the outline has spicules, not a few smooth lobes.
    """

    texture: Literal["spots", "across", "down"]
    wavelength_frac: tuple[float, float]
    is_spiculated: bool


LOOKS = {
    "columnar": Look(texture="down", wavelength_frac=(0.07, 0.12), is_spiculated=True),
    "granular": Look(texture="spots", wavelength_frac=(0.045, 0.07), is_spiculated=True),
    "layered": Look(texture="across", wavelength_frac=(0.07, 0.12), is_spiculated=False),
    "nodular": Look(texture="spots", wavelength_frac=(0.13, 0.2), is_spiculated=False),
}
"""Class name -> its look, in alphabetical order."""

CLASSES = tuple(LOOKS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What all pictures of one invented patient share.

    Attributes:
        label: one of `CLASSES`.
        modality: one of `MODALITIES`.
        wavelength_frac: distance between spots or stripes as a share of the picture's side.
        num_bumps: lobes or spicules around the outline.
        contrast: strength of the texture relative to that of the modality, about 1.
        offset: how much brighter the lesion is than its surroundings, -1..1.
        brightness: shift of the whole picture, -1..1.
    """

    label: str
    modality: str
    wavelength_frac: float
    num_bumps: int
    contrast: float
    offset: float
    brightness: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """One lesion to be laid into a picture.

    Attributes:
        inside: which pixels belong to it.
        weight: soft version of `inside`, 0..1.
        texture: 0 outside; inside normally distributed with mean 0 and deviation 1.
    """

    inside: Bool[np.ndarray, "S S"]
    weight: Float[np.ndarray, "S S"]
    texture: Float[np.ndarray, "S S"]

    @property
    def box_px(self) -> tuple[int, int, int, int]:
        """Tight box as (x, y, width, height)."""
        rows, cols = np.flatnonzero(self.inside.any(1)), np.flatnonzero(self.inside.any(0))
        x, y = int(cols[0]), int(rows[0])
        return x, y, int(cols[-1]) - x + 1, int(rows[-1]) - y + 1


def draw_subject(label: str, modality: str, *, generator: np.random.Generator) -> Subject:
    """Draw what the pictures of a patient have in common."""
    look = LOOKS[label]
    return Subject(
        label=label,
        modality=modality,
        wavelength_frac=float(generator.uniform(*look.wavelength_frac)),
        num_bumps=int(
            generator.integers(9, 15) if look.is_spiculated else generator.integers(2, 5)
        ),
        contrast=float(generator.uniform(0.95, 1.65)),
        offset=float(generator.uniform(-1, 1)),
        brightness=float(generator.uniform(-1, 1)),
    )


def draw_lesion(subject: Subject, *, size_px: int, generator: np.random.Generator) -> Lesion:
    """Draw a lesion of the subject's class at a random place, scale and rotation of its outline.

    Args:
        subject: whose lesion.
        size_px: side of the picture.
        generator: source of the pose and the texture.

    Returns:
        The lesion; it may reach over the border of the picture.
    """
    radius = size_px * generator.uniform(0.22, 0.34)
    center = size_px * (0.5 + generator.uniform(-0.12, 0.12, 2))
    rows, cols = np.mgrid[:size_px, :size_px].astype(np.float64)
    angle = np.arctan2(rows - center[1], cols - center[0]) + generator.uniform(0, 2 * np.pi)
    distance = np.hypot(rows - center[1], cols - center[0])
    border = radius * _outline(angle, subject, generator)
    weight = np.clip((border - distance) / 1.5 + 0.5, 0, 1)
    inside = weight > 0.5
    texture = np.zeros((size_px, size_px))
    texture[inside] = _normal_scores(_texture(subject, size_px, generator)[inside])
    return Lesion(inside=inside, weight=weight, texture=texture)


def _outline(
    angle: Float[np.ndarray, "S S"], subject: Subject, generator: np.random.Generator
) -> Float[np.ndarray, "S S"]:
    """Radius as a factor along the angle; the enclosed area is that of the unit circle."""
    bumps = subject.num_bumps
    phases = generator.uniform(0, 2 * np.pi, 3)
    is_spiculated = LOOKS[subject.label].is_spiculated

    def factor(a: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        wave = np.cos(bumps * a + phases[0])
        if is_spiculated:
            uneven = 1 + 0.35 * np.cos(3 * a + phases[1]) + 0.25 * np.cos(4 * a + phases[2])
            return np.asarray(0.75 + 0.6 * uneven * ((1 + wave) / 2) ** 2.5)
        return np.asarray(1 + 0.13 * wave + 0.08 * np.cos((bumps + 1) * a + phases[1]))

    circle = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    return np.asarray(factor(angle) / np.sqrt(np.mean(factor(circle) ** 2)))


def _normal_scores(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Replace values by normal scores of their ranks: every texture gets the same histogram."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values)] = (np.arange(len(values)) + 0.5) / len(values)
    return np.asarray(special.ndtri(ranks))


def _texture(
    subject: Subject, size_px: int, generator: np.random.Generator
) -> Float[np.ndarray, "S S"]:
    kind = LOOKS[subject.label].texture
    if kind == "spots":
        return _spots(size_px, subject.wavelength_frac, generator)
    direction = generator.uniform(-0.35, 0.35) + (np.pi / 2 if kind == "across" else 0)
    return _stripes(size_px, subject.wavelength_frac, direction, generator)


def _spots(
    size_px: int, wavelength_frac: float, generator: np.random.Generator
) -> Float[np.ndarray, "S S"]:
    """Isotropic noise around one spatial frequency."""
    frequency = np.fft.fftfreq(size_px, 1 / size_px)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    band = np.exp(-0.5 * ((radius * wavelength_frac - 1) / 0.15) ** 2)
    noise = np.fft.fft2(generator.standard_normal((size_px, size_px)))
    return np.fft.ifft2(noise * band).real


def _stripes(
    size_px: int, wavelength_frac: float, direction: float, generator: np.random.Generator
) -> Float[np.ndarray, "S S"]:
    """Wavy stripes of one wavelength; direction is that of their normal, in radians from x."""
    rows, cols = np.mgrid[:size_px, :size_px] / size_px
    along = cols * np.cos(direction) + rows * np.sin(direction)
    warp = 0.2 * smooth_noise(size_px, 0.12, generator)
    phase = along / wavelength_frac + warp + generator.uniform()
    return np.asarray(np.cos(2 * np.pi * phase))


def smooth_noise(
    size_px: int, sigma_frac: float, generator: np.random.Generator
) -> Float[np.ndarray, "S S"]:
    """Gaussian random field of mean 0 and deviation 1, smooth over sigma_frac of the side."""
    white = generator.standard_normal((size_px, size_px))
    field = ndimage.gaussian_filter(white, sigma_frac * size_px, mode="wrap")
    return np.asarray((field - field.mean()) / float(field.std()))
