"""What the published MedPix 2.0 consists of: file names, splits, hashes and counts."""

from pathlib import Path
from typing import Final

from app.core.exceptions import UserError

SPLITS: Final = ("train", "dev", "test")
SUBSPLITS: Final = ("train_1", "train_2")
JSONL_FOLDER: Final = "splitted_dataset"
IMAGE_FOLDER: Final = "images"
UID_LIST: Final = "uid_list.json"
OVERVIEW: Final = "images_overview.csv"

# sha256 of the files at commit d3bc431 of the CHILab1/MedPix-2.0 repository.
COMMIT: Final = "d3bc431576ec8041114806ec3eb58d75adf45029"
SHA256: Final = {
    "data_train.jsonl": "f466ee0d1e40a38dfa068ff9da30a2d58b2f0ae03a8359824daea50bcef74c4f",
    "data_dev.jsonl": "9796e9baa32c7cd9fbbb060bcce7d30764cc8fda0f5e1d29c0f5c8d5d6dd1385",
    "data_test.jsonl": "bf6f11b967d8f6881a7129cb84f7f2d456e05b577f1609cea986328faf2989df",
    "descriptions_train.jsonl": "ba7c03b168b249c2664f1813ad4af1526ffaae03b666d1e14a2479327028142a",
    "descriptions_dev.jsonl": "77fe5a125f28c635090a07a5ca84fadb9fa040219f8d025a686533fc22a8bbb7",
    "descriptions_test.jsonl": "9c6525899fd73e2209fa84d192a5ac9149741d98f26340d20e89ade31129dd2f",
    "uid_list.json": "feb015c9ac12c5adbd63d2494a73392abdb111b7ecdbb1a3fd807b2f340cb7fe",
}
CASE_COUNTS: Final = {"train": 535, "dev": 67, "test": 69}
IMAGE_COUNTS: Final = {"train": 1653, "dev": 197, "test": 200}


class DatasetNotFoundError(UserError):
    """There is no MedPix 2.0 folder where one was expected."""


def find_dataset(folder: Path) -> Path:
    """The folder that holds ``splitted_dataset/`` and ``images/``, at or one level below a folder.

    Raises:
        DatasetNotFoundError: says what is missing and how to get the data.
    """
    candidates = [folder, folder / "MedPix-2-0", folder / "MedPix-2.0"]
    for candidate in candidates:
        if (candidate / JSONL_FOLDER).is_dir() and (candidate / IMAGE_FOLDER).is_dir():
            return candidate
    reason = "does not exist" if not folder.exists() else f"has no {JSONL_FOLDER}/ and {IMAGE_FOLDER}/ folders"
    raise DatasetNotFoundError(
        f"{folder} {reason}. Point to a MedPix 2.0 folder (--data DIR, make up DATA=DIR or MEDPIX_DATA_DIR), "
        "or run `medpix fetch` to download it."
    )
