"""Decodes the images of records once, so that training never waits for a file."""

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.dataset.preprocess import Pixels, Preprocess
from ml.dataset.records import Record, RecordsError

Edit = Callable[[Image.Image], Image.Image]


def load_image(record: Record, preprocess: Preprocess, edit: Edit | None = None) -> Pixels:
    """One image, read and checked against its hash.

    Args:
        record: names the file and its hash.
        preprocess: how to prepare the image.
        edit: changes the image first.

    Returns:
        uint8 array (channels, size, size).

    Raises:
        RecordsError: the file is missing, changed or not an image.
    """
    try:
        data = record.path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordsError(f"{record.path.name} is missing from {record.path.parent}") from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise RecordsError(
            f"{record.path.name} is not the file that was seeded: its sha256 differs; "
            "restore it or run `medpix seed` again"
        )
    try:
        with Image.open(io.BytesIO(data)) as image:
            return preprocess.apply(image if edit is None else edit(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordsError(f"{record.path.name} cannot be decoded: {error}") from error


def load_images(
    records: Sequence[Record],
    preprocess: Preprocess,
    *,
    edit: Edit | None = None,
    workers: int = 4,
    on_progress: Callable[[float], None] | None = None,
) -> NDArray[np.uint8]:
    """The images of records, decoded in threads.

    Args:
        records: N records.
        preprocess: how to prepare each image.
        edit: changes each image first.
        workers: threads; Pillow releases the lock while it decodes.
        on_progress: called with the finished share, 0 to 1, about a hundred times.

    Returns:
        uint8 array (N, channels, size, size); 16 kB per grey image at 128 pixels.

    Raises:
        RecordsError: a file is missing, changed or not an image.
    """
    size = preprocess.size
    pixels = np.empty((len(records), preprocess.channels, size, size), dtype=np.uint8)
    every = max(1, len(records) // 100)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        decoded = pool.map(lambda record: load_image(record, preprocess, edit), records)
        for index, image in enumerate(decoded):
            pixels[index] = image
            if on_progress is not None and index % every == 0:
                on_progress((index + 1) / len(records))
    return pixels
