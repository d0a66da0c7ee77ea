"""What reading a file gives: records with a suggested intensity policy, or a reason why not."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from lvmmed.data.intensity import IntensityPolicy
from lvmmed.types import ImageRecord, InputError

MODALITIES = (
    "CT",
    "MRI",
    "X-ray",
    "ultrasound",
    "PET",
    "nuclear medicine",
    "endoscopy",
    "microscopy",
    "histology",
    "fundus",
    "OCT",
    "dermoscopy",
    "photo",
)
"""Words we use for modalities; other words of a user are kept as they are."""

_SPELLINGS = {
    "mr": "MRI",
    "mri": "MRI",
    "ct": "CT",
    "cta": "CT",
    "x-ray": "X-ray",
    "xray": "X-ray",
    "cxr": "X-ray",
    "radiograph": "X-ray",
    "mammography": "X-ray",
    "us": "ultrasound",
    "ultrasound": "ultrasound",
    "pet": "PET",
    "oct": "OCT",
}
_SAY_NOTHING = ("", "various", "unknown", "other", "mixed", "none")


def modality_word(text: str | None) -> str | None:
    """Bring a user's name of a modality to the words of `MODALITIES`.

    The first word decides, without regard to case, so "MRI T1" and "mr" are "MRI". Names that are
    not known are kept; blank ones, and those that say nothing ("various", "unknown"), are None.
    """
    text = (text or "").strip()
    if text.lower() in _SAY_NOTHING:
        return None
    known = {word.lower(): word for word in MODALITIES} | _SPELLINGS
    return known.get(text.lower()) or known.get(text.split()[0].lower()) or text


class ReadError(InputError):
    """A file that can't be read as an image.

    Args:
        path: the file.
        reason: why, in words that do not repeat the file's name.

    Attributes:
        path: the file.
        reason: why, in one line.
    """

    path: Path
    reason: str

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = one_line(reason)
        super().__init__(f"{path}: {self.reason}")

    def __reduce__(self) -> tuple[type["ReadError"], tuple[Path, str]]:
        """Let the error cross process borders."""
        return ReadError, (self.path, self.reason)


def one_line(text: str, *, max_chars: int = 200) -> str:
    """Join the lines of a message and cut it to a readable length."""
    joined = " ".join(text.split())
    return joined if len(joined) <= max_chars else joined[: max_chars - 3] + "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord(ImageRecord):
    """An `ImageRecord` fresh from its file, with what the file says about its intensities.

    Attributes:
        policy: policy that suits these pixels, with the limits of the whole volume or the window
            of the header where there is one; None leaves the choice to `default_policy`.
    """

    policy: IntensityPolicy | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadResult:
    """All that one file holds.

    Attributes:
        records: pictures or slices in order.
        num_empty: slices left out because they show nothing.
        num_left_out: frames, time points or pages left out for another reason; a warning says why.
        warnings: what the reader had to assume, once a file.
        sha256: hash of the file's bytes.
        format: name of the file's format, such as "DICOM".
    """

    records: tuple[SourceRecord, ...]
    num_empty: int = 0
    num_left_out: int = 0
    warnings: tuple[str, ...] = field(default=())
    sha256: str = ""
    format: str = ""

    def with_warnings(self, texts: tuple[str, ...]) -> "ReadResult":
        """Add warnings to the file and to each record, without repeating any."""
        if not texts:
            return self
        records = tuple(
            replace(record, warnings=tuple(dict.fromkeys((*record.warnings, *texts))))
            for record in self.records
        )
        merged = tuple(dict.fromkeys((*self.warnings, *texts)))
        return replace(self, records=records, warnings=merged)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a reader is told besides the path.

    Attributes:
        salt: secret text mixed into every key.
        modality: our word for the modality where the file does not say; None when unknown.
        sha256: hash of the file, which keys of volumes are made of.
    """

    salt: str
    modality: str | None
    sha256: str
