import os
from pathlib import Path

import pytest

from app.core.disk_cache import DiskCache
from app.data.image_store import THUMBNAIL_WIDTHS, ImageStore
from app.data.repository import NotFoundError


def test_thumbnails_unused_for_longest_are_removed_and_made_again(generated_dataset: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (generated_dataset / "images").glob("*.png"))[:4]
    files = [{"name": name, "sha256": f"{place:02x}" * 32} for place, name in enumerate(names)]
    store = ImageStore(generated_dataset, tmp_path / "thumbnails")
    made = [store.thumbnail(file, width) for file in files for width in THUMBNAIL_WIDTHS]
    for age, path in enumerate(made):
        os.utime(path, (age, age))
    assert store.thumbnail(files[0], THUMBNAIL_WIDTHS[0]) == made[0]  # asked for again: now the youngest
    DiskCache(tmp_path, made[0].stat().st_size + made[-1].stat().st_size).trim()
    assert set(tmp_path.rglob("*.jpg")) == {made[0], made[-1]}
    assert store.thumbnail(files[1], THUMBNAIL_WIDTHS[0]).is_file()


def test_a_name_does_not_lead_out_of_the_dataset(generated_dataset: Path, tmp_path: Path) -> None:
    store = ImageStore(generated_dataset, tmp_path)
    with pytest.raises(NotFoundError, match="is not in this service's dataset folder"):
        store.path({"name": "../../secret"})
