import os
from pathlib import Path

import pytest

from app.data.image_store import THUMBNAIL_WIDTHS, ImageStore


def test_the_cache_of_thumbnails_has_a_bound(generated_dataset: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (generated_dataset / "images").glob("*.png"))[:5]
    files = [{"name": name, "sha256": f"{place:02x}" * 32} for place, name in enumerate(names)]
    store = ImageStore(generated_dataset, tmp_path, max_thumbnails=16)
    made = [store.thumbnail(file, width) for file in files[:4] for width in THUMBNAIL_WIDTHS]
    for age, path in enumerate(made):
        os.utime(path, (age, age))
    assert store.thumbnail(files[0], 64) == made[0]  # asked for again: now the youngest
    added = store.thumbnail(files[4], 64)
    assert set(tmp_path.glob("*/*.jpg")) == {added, made[0], *made[6:]}
    assert store.thumbnail(files[1], 64).is_file()  # made once more
    again = ImageStore(generated_dataset, tmp_path, max_thumbnails=8)
    again.thumbnail(files[4], 128)
    assert len(set(tmp_path.glob("*/*.jpg"))) == 6


def test_a_name_does_not_lead_out_of_the_dataset(generated_dataset: Path, tmp_path: Path) -> None:
    store = ImageStore(generated_dataset, tmp_path)
    with pytest.raises(FileNotFoundError):
        store.path({"name": "../../secret"})
