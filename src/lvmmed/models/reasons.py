"""Errors of other libraries in a few words."""

MAX_CHARS = 160


def first_sentence(error: BaseException) -> str:
    """Take the first sentence of an error, or of a long one its first whole words.

    Args:
        error: as a library raised it.

    Returns:
        One line without the full stop; the name of the error's type where it says nothing.
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    sentence = line.split(". ")[0].rstrip(".") or type(error).__name__
    if len(sentence) <= MAX_CHARS:
        return sentence
    return sentence[:MAX_CHARS].rsplit(" ", 1)[0] + " ..."
