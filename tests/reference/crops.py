"""Slow, obvious crop and resize, written from the definition of a triangle filter."""

import numpy as np


def resize_loop(image, box, *, size):
    """Resize the box (x0, y0, x1, y1, real numbers) of a [H, W] image to [size, size]."""
    x0, y0, x1, y1 = box
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            total = weight_sum = 0.0
            for row in range(image.shape[0]):
                for col in range(image.shape[1]):
                    weight = _weight(row, i, y0, y1, size) * _weight(col, j, x0, x1, size)
                    total += weight * image[row, col]
                    weight_sum += weight
            result[i, j] = total / weight_sum
    return result


def _weight(pixel, sample, start, stop, size):
    step = (stop - start) / size
    position = start + (sample + 0.5) * step
    triangle = max(0.0, 1 - abs(pixel + 0.5 - position) / max(step, 1.0))
    share_inside = max(0.0, min(pixel + 1, stop) - max(pixel, start))
    return triangle * share_inside
