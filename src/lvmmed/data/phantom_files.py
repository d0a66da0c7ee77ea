"""Files of the generated pictures: DICOM, NIfTI and PNG, with the headers readers rely on.

Letters used in shapes:
    S: side of a picture in pixels.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from jaxtyping import Int16, Shaped
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SUFFIXES = {
    "CT": ".dcm",
    "MRI": ".nii.gz",
    "X-ray": ".png",
    "ultrasound": ".png",
    "histology": ".png",
}
"""Modality -> ending of its files."""

PIXEL_MM = 1.5
SLICE_MM = 8.0


def write_picture(
    path: Path,
    modality: str,
    pictures: Sequence[Shaped[np.ndarray, "S S *C"]],
    *,
    patient: str,
    number: int,
) -> None:
    """Write pictures in the format of their modality; folders are made as needed.

    Args:
        path: file to write, ending as in `SUFFIXES`.
        modality: key of `SUFFIXES`.
        pictures: one picture; for MRI the slices of the volume from feet to head.
        patient: invented identity, written into DICOM headers.
        number: counts the files of the patient; odd CT slices are stored signed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if modality == "MRI":
        _write_nifti(path, pictures)
        return
    assert len(pictures) == 1
    if modality == "CT":
        _write_dicom(path, pictures[0], patient=patient, number=number)
    else:
        Image.fromarray(pictures[0]).save(path)


def _write_nifti(path: Path, slices: Sequence[Int16[np.ndarray, "S S"]]) -> None:
    """Write an axial volume whose slices, hung with the patient's right on the left, are these.

    The file's first axis runs to the patient's right and its second to anterior (RAS+), so rows
    and columns are swapped and reversed. The gzip header has no time, for equal bytes.
    """
    volume = np.stack([picture[::-1, ::-1].T for picture in slices], axis=-1)
    image = nib.Nifti1Image(volume, np.diag([PIXEL_MM, PIXEL_MM, SLICE_MM, 1.0]))
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_dicom(
    path: Path, hounsfield: Int16[np.ndarray, "S S"], *, patient: str, number: int
) -> None:
    """Write a CT slice with a soft-tissue window; the rescale intercept depends on the signing."""
    is_signed = number % 2 == 1
    intercept = 0 if is_signed else -1024
    stored = (hounsfield.astype(np.int32) - intercept).astype(np.int16 if is_signed else np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[patient, "image", str(number)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[patient, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, "series", str(number)])
    dataset.Modality = "CT"
    dataset.PatientName, dataset.PatientID = f"Phantom^{patient}", patient
    dataset.BodyPartExamined = "ABDOMEN"
    dataset.InstanceNumber = number + 1
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, number * SLICE_MM]
    dataset.PixelSpacing = [PIXEL_MM, PIXEL_MM]
    dataset.SliceThickness = SLICE_MM
    dataset.Rows, dataset.Columns = hounsfield.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(is_signed)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, intercept, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.PixelData = stored.tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
