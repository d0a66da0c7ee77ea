import pickle
from pathlib import Path

import pytest

from lvmmed.data.records import ReadError, modality_word, one_line


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("MRI T1", "MRI"),
        ("mr", "MRI"),
        ("CXR", "X-ray"),
        ("Ultrasound", "ultrasound"),
        ("nuclear medicine", "nuclear medicine"),
        ("Thermography ", "Thermography"),
        ("", None),
        (None, None),
        ("various", None),
    ],
)
def test_names_of_modalities_are_brought_to_our_words(text, word):
    assert modality_word(text) == word


def test_a_read_error_crosses_process_borders_whole():
    error = ReadError(Path("a/b.dcm"), "two\nlines")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "a/b.dcm: two lines"
    assert (again.path, again.reason) == (Path("a/b.dcm"), "two lines")


def test_long_messages_are_cut():
    assert one_line("x" * 300) == "x" * 197 + "..."
