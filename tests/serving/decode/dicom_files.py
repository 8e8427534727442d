"""DICOM files as scanners and attackers make them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from app.core.settings import load_settings
from app.serving.decode.decoded_image import DecodedImage
from app.serving.decode.image import decode

PATIENT = "Doe^Jane^Secret"
RAMP = np.tile(np.arange(64, dtype=np.int16), (32, 1))


def dicom(
    pixels: NDArray[Any], *, syntax: str = ExplicitVRLittleEndian, frame: bytes | bytearray | None = None, **tags: Any
) -> bytes:
    """A CT image.

    Args:
        pixels: (rows, columns), (frames, rows, columns) or (rows, columns, 3).
        syntax: transfer syntax.
        frame: every compressed frame, for a compressed syntax.
        tags: to set; None takes one out.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = UID(syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    colour = pixels.shape[-1] == 3
    shape = pixels.shape[:2] if colour else pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    dataset.PatientName = PATIENT
    dataset.PatientID = "SECRET-ID-4711"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    if colour:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    count = len(pixels) if pixels.ndim == 3 and not colour else 1
    dataset.PixelData = pixels.tobytes() if frame is None else encapsulate([bytes(frame)] * count)
    dataset["PixelData"].VR = "OB" if frame is not None or bits == 8 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def lookup_table(entries: NDArray[Any], first: int, bits: int) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def functional_group(macro: str, **tags: Any) -> Dataset:
    """An item of a functional groups sequence with one macro."""
    inner, outer = Dataset(), Dataset()
    for name, value in tags.items():
        setattr(inner, name, value)
    setattr(outer, macro, [inner])
    return outer


def palette(reds: NDArray[Any], greens: NDArray[Any], blues: NDArray[Any], bits: int = 16) -> dict[str, Any]:
    """The tags of a plain palette."""
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in (("Red", reds), ("Green", greens), ("Blue", blues)):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [len(table) % 2**16, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = table.astype("<u2" if bits == 16 else "u1").tobytes()
    return tags


def deflated(pixels: NDArray[Any], *, version: bytes = b"\0\1", mebibytes: int = 0) -> bytes:
    """A deflated file.

    Args:
        pixels: (rows, columns).
        version: FileMetaInformationVersion, which stands before the transfer syntax.
        mebibytes: of zeros behind the pixels.
    """
    plain = dicom(pixels)
    body = plain.index(b"\x08\x00\x16\x00")  # SOPClassUID, the first element of the data set
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(plain[body:])
    packed += b"".join(packer.compress(bytes(2**20)) for _ in range(mebibytes)) + packer.flush()
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = b"\2\0\1\0OB\0\0" + struct.pack("<I", len(version)) + version
    meta += b"\2\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
    length = b"\2\0\0\0UL\4\0" + struct.pack("<I", len(meta))
    return b"\0" * 128 + b"DICM" + length + meta + packed


def dicom_start() -> bytes:
    """Preamble and file meta information, behind which a data set of explicit VRs follows."""
    return b"\0" * 128 + b"DICM\2\0\x10\0UI\x14\x00" + ExplicitVRLittleEndian.encode() + b"\0"


def jpeg(pixels: NDArray[np.uint8], kind: str = "JPEG") -> bytes:
    """A compressed frame."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def read(data: bytes) -> DecodedImage:
    """What the service makes of a file."""
    return decode(data, load_settings())


def shown(pixels: NDArray[Any], **tags: Any) -> tuple[NDArray[np.uint8], str]:
    """The grey levels of a file, and its notes."""
    decoded = read(dicom(pixels, **tags))
    return np.array(decoded.image), " ".join(decoded.info.notes)
