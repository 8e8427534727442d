"""Images that are no CT or MR image of the kind that models learned from, by kind, without any download.

DICOM files come with pydicom and pydicom-data, photographs with scikit-image, scikit-learn and Matplotlib; charts,
screenshots and patterns are drawn; the rest is made from images of the dataset. Views of one source are alike, so the
kinds share no source.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import matplotlib as mpl
import numpy as np
import pydicom
import skimage
import sklearn
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from pydicom.errors import InvalidDicomError

from app.core.exceptions import ApiError
from app.core.settings import Settings
from app.serving.decode.image import decode
from ml.evaluation.corruptions import without_background

Images = list[Image.Image]


class View(NamedTuple):
    """An image and the name of the file, scene or drawing that it was made from."""

    source: str
    image: Image.Image


Views = list[View]
_DRAWN: Final = 24
_TEXT: Final = (
    "Patient list Worklist Study date Report draft unsigned priority normal contrast none follow-up in six months "
    "File Edit View Tools Window Help open save print export series layout annotations measurements settings"
)


def dicom_kinds(settings: Settings) -> dict[str, Views]:
    """Radiographs, ultrasound, nuclear medicine and others, by the Modality of their headers.

    Args:
        settings: limits of decoding.
    """
    by_modality: dict[str, Views] = {}
    seen = set()
    for path in _dicom_files():
        try:
            modality = str(pydicom.dcmread(path, stop_before_pixels=True).get("Modality"))
            image = decode(path.read_bytes(), settings).image
        except (ApiError, InvalidDicomError, OSError, ValueError, KeyError):
            continue
        # The same image is there in many encodings.
        key = hashlib.sha256(image.convert("L").resize((8, 8)).quantize(16).tobytes()).hexdigest()
        if min(image.size) >= 32 and key not in seen:
            seen.add(key)
            by_modality.setdefault(modality, []).append(View(f"{modality} {path.name}", image))
    return {
        # There are two: their crops and mirror images are other views of a kind that the models never saw.
        "radiographs": _all_views(by_modality.get("CR", [])),
        "ultrasound": [
            view for own in by_modality.get("US", []) for view in (own, own._replace(image=own.image.convert("L")))
        ],
        "nuclear medicine": _all_views(by_modality.get("NM", [])),
        "other DICOM": [view for kind in ("OT", "SEG") for view in by_modality.get(kind, [])],
    }


def _dicom_files() -> Iterator[Path]:
    roots = [Path(pydicom.__file__).parent / "data" / "test_files"]
    extra = find_spec("data_store")  # the package pydicom-data
    if extra is not None and extra.submodule_search_locations:
        roots += [Path(location) / "data" for location in extra.submodule_search_locations]
    for root in roots:
        yield from sorted(path for path in root.rglob("*") if path.is_file())


def _all_views(sources: Views) -> Views:
    return [View(source, view) for source, image in sources for view in _views(image)]


def _views(image: Image.Image) -> Images:
    width, height = image.size
    corners = [(left, top) for left in (0, width // 3) for top in (0, height // 3)]
    parts = [image.crop((left, top, left + 2 * width // 3, top + 2 * height // 3)) for left, top in corners]
    return [image, ImageOps.mirror(image), *parts]


def photographs() -> dict[str, Views]:
    """Photographs and images of a microscope or telescope: every second scene as it is, the others in grey."""
    skimage_data, sklearn_data = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets"
    paths = [
        *sorted(skimage_data.glob("*.png")),
        *sorted(skimage_data.glob("*.jpg")),
        *sorted((sklearn_data / "images").glob("*.jpg")),
        Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    ]
    drawn = {"chessboard_GRAY", "chessboard_RGB", "color", "logo", "page", "phantom", "text", "horse"}
    by_scene: dict[str, Images] = {}
    for path in paths:
        if path.stem not in drawn:
            # Two cameras side by side took one scene.
            scene = path.stem.removesuffix("_left").removesuffix("_right")
            by_scene.setdefault(scene, []).append(Image.open(path).convert("RGB"))
    in_colour, in_grey = sorted(by_scene)[::2], sorted(by_scene)[1::2]
    return {
        "photographs": [View(scene, image) for scene in in_colour for image in by_scene[scene]],
        "grey photographs": [
            View(scene, view)
            for scene in in_grey
            for image in by_scene[scene]
            for view in _views(image.convert("L"))[::2]
        ],
    }


def charts() -> Images:
    """Lines, bars, scatter, pie charts and heat maps of Matplotlib, on white and on black."""
    images = []
    for number in range(_DRAWN):
        random = np.random.default_rng(number)
        with mpl.rc_context({"axes.facecolor": "black" if number % 4 == 3 else "white"}):
            figure = Figure(figsize=(4, 3), dpi=80, facecolor="black" if number % 4 == 3 else "white")
            axes = figure.add_subplot()
        kind = number % 5
        if kind == 0:
            axes.plot(random.normal(size=(60, 3)).cumsum(axis=0))
        elif kind == 1:
            axes.bar(np.arange(8), random.random(8))
        elif kind == 2:
            left, right = random.normal(size=(2, 200))
            axes.scatter(left, right, s=8)
        elif kind == 3:
            axes.pie(random.random(5))
        else:
            axes.imshow(random.random((12, 12)), cmap="gray")
        images.append(_figure_image(figure))
    return images


def _figure_image(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    image = Image.open(file)
    image.load()
    return image


def screenshots() -> Images:
    """Windows with text, tables and buttons, light and dark."""
    images, words = [], _TEXT.split()
    for number in range(_DRAWN):
        random = np.random.default_rng(100 + number)
        dark = number % 2 == 1
        paper, ink = ((24, 26, 30), (210, 214, 220)) if dark else ((245, 246, 248), (30, 32, 36))
        image = Image.new("RGB", (640, 480), paper)
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, 640, 28), fill=(60, 64, 72))
        draw.text((10, 8), "  ".join(random.choice(words, 6)), fill=(230, 230, 230))
        for row in range(18):
            draw.text((20, 48 + 22 * row), " ".join(random.choice(words, int(random.integers(2, 10)))), fill=ink)
        for left in random.integers(380, 560, 3).tolist():
            top = int(random.integers(60, 420))
            draw.rounded_rectangle((left, top, left + 70, top + 26), 5, outline=ink, fill=(70, 110, 170))
        images.append(image)
    return images


def patterns() -> Images:
    """Noise of several kinds, gradients, grids and blobs."""
    images = []
    y, x = np.mgrid[0:256, 0:256] / 255.0
    for number in range(_DRAWN):
        random = np.random.default_rng(200 + number)
        kind = number % 6
        if kind == 0:
            values = random.random((256, 256))
        elif kind == 1:
            values = random.normal(0.5, 0.15, (256, 256))
        elif kind == 2:
            values = _enlarged(random.random((16, 16)))
        elif kind == 3:
            values = x * random.random() + y * random.random()
        elif kind == 4:
            values = 0.5 + 0.5 * np.sin(40 * (x * random.random() + y * random.random()))
        else:
            values = (_enlarged(random.random((12, 12))) > 0.5).astype(np.float64)
        images.append(Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8)))
    return images


def _enlarged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    small = Image.fromarray((values * 255).astype(np.uint8))
    return np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC), dtype=np.float64) / 255.0


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(0.35 * width), round(0.35 * height), round(0.65 * width), round(0.65 * height)))


# Ways to spoil an image of the dataset: of a CT or MR image still, but none that a model learned from.
SPOILED: Final[Mapping[str, Callable[[Image.Image], Image.Image]]] = MappingProxyType(
    {
        "rotated": lambda image: image.convert("L").rotate(135),
        "upside down": lambda image: ImageOps.flip(image.convert("L")),
        "inverted": lambda image: ImageOps.invert(image.convert("L")),
        "skull-stripped": without_background(0.6),
        "cropped": _cropped,
        "tiny": lambda image: image.convert("L").resize((24, 24)),
    }
)


def foreign_images(settings: Settings) -> dict[str, Views]:
    """By kind, images that show no CT or MR image at all; kinds without an image are left out.

    Raises:
        ValueError: two kinds have a source in common.
    """
    drawn = {"charts": charts(), "screenshots": screenshots(), "noise and patterns": patterns()}
    kinds = {
        **dicom_kinds(settings),
        **photographs(),
        **{kind: [View(f"{kind} {number}", image) for number, image in enumerate(own)] for kind, own in drawn.items()},
    }
    check_sources(kinds)
    return {kind: views for kind, views in kinds.items() if views}


def check_sources(kinds: Mapping[str, Views]) -> None:
    """Some kinds are for choosing a rule and others for measuring it: see that no source is in two of them.

    Raises:
        ValueError: one is.
    """
    kind_of: dict[str, str] = {}
    for kind, views in kinds.items():
        for source in {view.source for view in views}:
            if source in kind_of:
                raise ValueError(f"{source} is a source of {kind_of[source]} and of {kind}")
            kind_of[source] = kind


def spoiled_images(images: Sequence[Image.Image]) -> dict[str, Images]:
    """By kind, images of the dataset that were spoiled."""
    return {kind: [spoil(image) for image in images] for kind, spoil in SPOILED.items()}
