"""The shared contracts refuse what they do not allow."""

import numpy as np
import pytest

from lvmmed.types import ImageRecord


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_a_record_knows_its_height_and_width(shape):
    record = ImageRecord(pixels=np.zeros(shape, np.uint8), source="a.png")
    assert record.size == (4, 5)


@pytest.mark.parametrize("shape", [(4,), (4, 5, 4), (0, 5), (2, 3, 3, 3)])
def test_a_record_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape"):
        ImageRecord(pixels=np.zeros(shape, np.uint8), source="a.png")


def test_a_record_refuses_other_dtypes():
    with pytest.raises(ValueError, match="float64"):
        ImageRecord(pixels=np.zeros((4, 5), np.float64), source="a.png")
