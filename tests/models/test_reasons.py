"""Errors of other libraries in a few words."""

import pytest

from lvmmed.models.reasons import MAX_CHARS, first_sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no route. Please try again.", "no route"),
        ("\n  broken file.\nstory", "broken file"),
        ("no stop at all", "no stop at all"),
        ("version 2.6 is needed", "version 2.6 is needed"),
        ("", "OSError"),
    ],
)
def test_the_first_sentence_is_taken(text, sentence):
    assert first_sentence(OSError(text)) == sentence


def test_a_long_sentence_is_cut_between_words():
    shortened = first_sentence(OSError("again " * 100))
    assert set(shortened.split()) == {"again", "..."}
    assert MAX_CHARS - 10 < len(shortened) <= MAX_CHARS + 4
