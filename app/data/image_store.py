"""The image files of the dataset and their thumbnails, found through the database's record alone."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image

from app.core.files import atomic_write
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.repository import NotFoundError

THUMBNAIL_WIDTHS: Final = (64, 128, 256, 512)


class ImageStore:
    """Paths of image files and cached thumbnails."""

    def __init__(self, dataset_dir: Path, cache_dir: Path) -> None:
        self._dataset_dir = dataset_dir
        self._cache_dir = cache_dir

    def path(self, file: Mapping[str, Any]) -> Path:
        """The image file of a record.

        Raises:
            NotFoundError: it is not in the dataset folder.
        """
        folder = find_dataset(self._dataset_dir) / IMAGE_FOLDER
        path = (folder / str(file["name"])).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            image = Path(str(file["name"])).stem
            raise NotFoundError(
                f"The file of image {image} is not in this service's dataset folder. Run `medpix fetch`."
            )
        return path

    def thumbnail(self, file: Mapping[str, Any], width: int) -> Path:
        """A JPEG of the image, at most ``width`` pixels wide and high; made once per content and width.

        Args:
            file: of the image's record.
            width: one of ``THUMBNAIL_WIDTHS``.

        Raises:
            NotFoundError: the image is not in the dataset folder.
        """
        sha256 = str(file["sha256"])
        cached = self._cache_dir / sha256[:2] / f"{sha256}-{width}.jpg"
        try:
            os.utime(cached)  # DiskCache removes what was not used for the longest time
        except FileNotFoundError:
            self._write_thumbnail(self.path(file), cached, width)
        return cached

    @staticmethod
    def _write_thumbnail(source: Path, target: Path, width: int) -> None:
        with Image.open(source) as opened:
            image = opened.convert("L" if opened.mode in ("L", "1", "I;16") else "RGB")
        image.thumbnail((width, width), Image.Resampling.LANCZOS)
        with atomic_write(target, durable=False) as temporary:  # a reader never sees half a file
            image.save(temporary, "JPEG", quality=85)
