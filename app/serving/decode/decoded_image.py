"""A decoded upload, whatever its format."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an uploaded file without its pixels.

    Attributes:
        sha256: of the uploaded bytes.
        width, height: in pixels, as stored.
        mode: of the file, such as L, P, RGB, RGBA, CMYK or I;16.
        notes: what was done to read it that a reader should know, in sentences.
        header_modality: Modality (0008,0060) of a DICOM file, such as CT, MR or CR; None where there is none.
    """

    sha256: str
    width: int
    height: int
    mode: str
    notes: tuple[str, ...] = ()
    header_modality: str | None = None


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded upload.

    Attributes:
        image: the decoded image in its own mode.
        info: the file that it came from.
    """

    image: Image.Image
    info: ImageInfo
