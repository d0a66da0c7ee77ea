"""Patches, positions and square errors one number at a time, in plain Python."""

import math


def patches_loop(image, patch_px):
    """Patches [patch][number] of an image [channel][row][column], in rows from the top left."""
    side = len(image[0]) // patch_px
    return [
        [
            image[channel][r * patch_px + y][c * patch_px + x]
            for channel in range(3)
            for y in range(patch_px)
            for x in range(patch_px)
        ]
        for r in range(side)
        for c in range(side)
    ]


def normalised_loop(patch):
    """Mean 0 and deviation 1 over all numbers of a patch."""
    mean = sum(patch) / len(patch)
    variance = sum((x - mean) ** 2 for x in patch) / len(patch)
    return [(x - mean) / math.sqrt(variance + 1e-6) for x in patch]


def square_error_loop(predicted, target):
    """Mean square error over the numbers of all patches [image][patch][number]."""
    errors = [
        (p - t) ** 2
        for image_p, image_t in zip(predicted, target, strict=True)
        for patch_p, patch_t in zip(image_p, image_t, strict=True)
        for p, t in zip(patch_p, patch_t, strict=True)
    ]
    return sum(errors) / len(errors)


def position_loop(row, col, width):
    """Sine and cosine waves of the row, then of the column (Vaswani et al. 2017, section 3.5)."""
    numbers = []
    for place in (row, col):
        angles = [place / 10000 ** (i / (width // 4)) for i in range(width // 4)]
        numbers += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return numbers
