"""Readers: one row of `READERS` a format; a file becomes records of its pictures or slices.

What a reader does not do: it scales no intensities (see `intensity`), and it keeps no text of the
header but modality and geometry; identities leave it only as salted hashes.
"""

import gzip
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from jaxtyping import Shaped
from nibabel.filebasedimages import ImageFileError

from lvmmed.data import dicom, volumes
from lvmmed.data.dicom_header import complete_syntax
from lvmmed.data.raster import OTHER_PAGES, decode_raster, grey_if_equal, narrowed
from lvmmed.data.records import (
    ReadError,
    ReadOptions,
    ReadResult,
    SourceRecord,
    modality_word,
    one_line,
)
from lvmmed.data.salt import salted_key
from lvmmed.files import file_sha256
from lvmmed.types import ImageRecord

HEAD_BYTES = 352
"""Bytes at the start of a file that tell its format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One row of `READERS`.

    Attributes:
        name: what people call it.
        suffixes: endings of file names, lower case.
        matches: whether the first `HEAD_BYTES` bytes of a file say that it is this format.
        read: turns the file into records; may raise anything, `read_file` makes it one line.
    """

    name: str
    suffixes: tuple[str, ...]
    matches: Callable[[bytes], bool]
    read: Callable[[Path, ReadOptions], ReadResult]


def read_records(path: Path, *, salt: str = "", modality: str | None = None) -> list[ImageRecord]:
    """Read every picture or slice of a file, in its own units.

    Args:
        path: a PNG, JPEG, BMP, TIFF, DICOM or NIfTI file; the content decides, then the name.
        salt: secret text mixed into the keys of patients, studies, series and volumes.
        modality: used where the file does not say.

    Returns:
        Records with `intensity` "raw", in the order of the file; they carry a suggested policy
        that `default_policy` finds. Slices without content are left out. A `ReadError` says when
        the file is missing, not an image, damaged, or without a decoder here.
    """
    return list(read_file(path, salt=salt, modality=modality).records)


def read_file(path: Path, *, salt: str = "", modality: str | None = None) -> ReadResult:
    """Read a file as `read_records` does, and count what was left out.

    Args:
        path: the file.
        salt: secret text mixed into every key.
        modality: used where the file does not say.

    Returns:
        The records, counts, warnings, and the hash of the file.

    Raises:
        ReadError: missing, not an image, damaged, without a decoder here, or of empty slices only.
    """
    if not path.is_file():
        raise ReadError(path, "is a folder, need a file" if path.is_dir() else "no such file")
    try:
        row = _format_of(path)
        options = ReadOptions(salt=salt, modality=modality_word(modality), sha256=file_sha256(path))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = row.read(path, options)
    except ReadError:
        raise
    except Exception as error:  # decoders of foreign files raise any type there is
        detail = str(error) or type(error).__name__
        raise ReadError(path, f"damaged or unusual file ({detail})") from error
    if not result.records:
        raise ReadError(path, f"all {result.num_empty} slices are empty")
    result = replace(result, sha256=options.sha256, format=row.name)
    return result.with_warnings(tuple(_warning_text(item) for item in caught))


def _warning_text(item: warnings.WarningMessage) -> str:
    """First sentence of a library's warning without what may quote a header's value."""
    text = one_line(str(item.message), max_chars=120).split(":")[0].split("'")[0]
    return f"{item.category.__name__}: {text.strip()}"


def is_readable_name(path: Path) -> bool:
    """Whether the name of a file ends like one of our formats."""
    name = path.name.lower()
    return any(name.endswith(suffix) for row in READERS for suffix in row.suffixes)


def is_unread_name(path: Path) -> bool:
    """Whether the name of a file ends like an image format that we do not read."""
    return path.name.lower().endswith(UNREAD_SUFFIXES)


def is_dicom_content(path: Path) -> bool:
    """Whether a file without a telling name starts like DICOM."""
    try:
        with path.open("rb") as file:
            return _is_dicom(file.read(HEAD_BYTES))
    except OSError:
        return False


def is_image_file(path: Path) -> bool:
    """Whether a file has the name of a readable format, or is DICOM under another name.

    DICOM exports have no suffix, the end of a UID, or any other (.img, .mr, .dic).
    """
    if is_readable_name(path):
        return True
    if is_unread_name(path) or path.name.upper() == "DICOMDIR":
        return False
    return is_dicom_content(path)


def _format_of(path: Path) -> Format:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ReadError(path, "file is empty")
    for row in READERS:
        if row.matches(head):
            return row
    if head[:2] == b"\x1f\x8b" and not is_unread_name(path):
        return _format_named("NIfTI")
    if path.name.lower().endswith((".dcm", ".dicom", ".ima")):
        return _format_named("DICOM")  # the preamble may be missing
    known = ", ".join(row.name for row in READERS)
    remedy = "; convert it to NIfTI or PNG" if is_unread_name(path) else ""
    raise ReadError(path, f"content is none of {known}{remedy}")


def _format_named(name: str) -> Format:
    return next(row for row in READERS if row.name == name)


# Raster files


def _read_raster(path: Path, options: ReadOptions) -> ReadResult:
    pages, notes = decode_raster(path)
    return _pages_result(path, pages, options, notes)


def _pages_result(
    path: Path,
    pages: list[Shaped[np.ndarray, "..."]],
    options: ReadOptions,
    notes: list[str],
) -> ReadResult:
    """One page is a picture; several pages of one size and type are a volume."""
    first = pages[0]
    if first.ndim not in (2, 3) or (first.ndim == 3 and first.shape[2] != 3):
        raise ReadError(path, f"array of shape {first.shape}, need grey or RGB pages")
    same = [p for p in pages if p.shape == first.shape and p.dtype == first.dtype]
    if len(same) < len(pages):
        notes.append(OTHER_PAGES)
    if len(same) > 1:
        result = volumes.slices_result(
            np.stack(same),
            volumes.VolumeInfo(
                source=str(path),
                volume_key=salted_key(options.sha256, salt=options.salt, kind="volume"),
                modality=options.modality,
            ),
        )
    else:
        pixels = narrowed(grey_if_equal(first) if first.ndim == 3 else first)
        result = ReadResult(
            records=(SourceRecord(pixels=pixels, source=str(path), modality=options.modality),)
        )
    result = replace(result, num_left_out=len(pages) - len(same))
    return result.with_warnings(tuple(dict.fromkeys(notes)))


# NIfTI


def _read_nifti(path: Path, options: ReadOptions) -> ReadResult:
    image = _open_nifti(path)
    header = image.header
    volumes.check_nifti(path, int(header["intent_code"]), image.shape, image.dataobj.dtype)
    shape = (*image.shape, 1) if len(image.shape) == 2 else image.shape
    num_times = int(np.prod(shape[3:], dtype=np.int64))
    times = volumes.spread_times(num_times)
    affine, notes = volumes.nifti_affine(path, image)
    orientation = nib.io_orientation(affine)
    spacing, more = volumes.nifti_spacing(header, affine)
    notes += more
    results = []
    for time in times:
        block = _nifti_block(image, shape, time)
        ras = nib.apply_orientation(block, orientation)
        info = volumes.VolumeInfo(
            source=str(path),
            volume_key=salted_key(f"{options.sha256}#0", salt=options.salt, kind="volume"),
            modality=options.modality,
            time=time,
        )
        results.append(volumes.nifti_result(ras, orientation, shape, spacing, info))
    result = volumes.joined(results)
    if len(times) < num_times:
        notes.append(f"4-D file thinned to {volumes.MAX_TIMES} evenly spaced volumes")
    result = replace(result, num_left_out=num_times - len(times))
    return result.with_warnings(tuple(notes))


def _open_nifti(path: Path) -> Any:
    if path.name.lower().endswith((".nii", ".nii.gz")):
        try:
            return nib.load(path)
        except ImageFileError:
            pass  # the suffix lies about compression
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    is_second = data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # NIfTI-2: header of 540 bytes
    kind = nib.Nifti2Image if is_second else nib.Nifti1Image
    return kind.from_bytes(data)


def _nifti_block(image: Any, shape: tuple[int, ...], time: int) -> Shaped[np.ndarray, "..."]:
    """Values of one volume [X,Y,Z] or [X,Y,Z,3]; slope and intercept are applied."""
    index = np.unravel_index(time, shape[3:]) if len(shape) > 3 else ()
    block = np.asanyarray(image.dataobj[(..., *(int(i) for i in index))])
    if block.dtype.names:  # RGB24
        block = np.stack([block[name] for name in block.dtype.names[:3]], axis=-1)
        return block.reshape(*shape[:3], 3)
    return narrowed(block.reshape(shape[:3]))


# DICOM


def _read_dicom(path: Path, options: ReadOptions) -> ReadResult:
    try:
        dataset = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError:
        dataset = pydicom.dcmread(path, force=True)
        if "SOPClassUID" not in dataset and "Rows" not in dataset:
            raise ReadError(path, "not a DICOM file, in spite of its name") from None
    reason = dicom.why_no_image(dataset)
    if reason:
        raise ReadError(path, reason)
    notes = complete_syntax(dataset)
    pixels = _decode_dicom(path, dataset)
    result = dicom.dicom_result(dataset, pixels, source=str(path), options=options)
    return result.with_warnings(notes)


def _decode_dicom(path: Path, dataset: pydicom.Dataset) -> Shaped[np.ndarray, "..."]:
    """Stored values [F,H,W] or [F,H,W,3]; colour spaces and palettes become RGB."""
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # pydicom and its plugins raise many types
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
        name = syntax.name if syntax is not None else "unknown transfer syntax"
        is_missing = "missing dependencies" in str(error)
        detail = "no decoder installed" if is_missing else one_line(str(error), max_chars=100)
        raise ReadError(path, f"pixel data cannot be decoded: {name} ({detail})") from error
    is_palette = dataset.PhotometricInterpretation == dicom.PALETTE
    if is_palette:
        pixels = dicom.palette_colours(dataset, pixels)
    is_colour = dataset.get("SamplesPerPixel", 1) > 1 or is_palette
    return pixels if pixels.ndim == 3 + is_colour else pixels[np.newaxis]


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _is_nifti(head: bytes) -> bool:
    return head[344:347] == b"n+1" or head[4:7] == b"n+2"


READERS: tuple[Format, ...] = (
    Format(name="DICOM", suffixes=(".dcm", ".dicom", ".ima"), matches=_is_dicom, read=_read_dicom),
    Format(name="NIfTI", suffixes=(".nii", ".nii.gz"), matches=_is_nifti, read=_read_nifti),
    Format(
        name="PNG",
        suffixes=(".png",),
        matches=lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
        read=_read_raster,
    ),
    Format(
        name="JPEG",
        suffixes=(".jpg", ".jpeg", ".jpe"),
        matches=lambda head: head.startswith(b"\xff\xd8\xff"),
        read=_read_raster,
    ),
    Format(
        name="TIFF",
        suffixes=(".tif", ".tiff"),
        matches=lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        read=_read_raster,
    ),
    Format(
        name="BMP",
        suffixes=(".bmp",),
        matches=lambda head: head.startswith(b"BM"),
        read=_read_raster,
    ),
)
"""Every format that can be read; the first row whose `matches` agrees reads the file."""

UNREAD_SUFFIXES = (
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz", ".hdr", ".mnc", ".gipl"),
    *(".svs", ".ndpi", ".mrxs", ".czi", ".jp2", ".j2k", ".webp", ".gif", ".heic", ".pgm", ".ppm"),
    *(".npy", ".npz"),
)
"""Image formats that we do not read: such files are quarantined, not passed over."""
