import pytest
from pymongo.database import Database

from ml.dataset import labels
from tests.ml.conftest import Document


def test_encode_follows_the_order_of_the_classes() -> None:
    assert [labels.encode("modality", name) for name in ("CT", "MR")] == [0, 1]
    assert labels.encode("location", "Vascular") == 20
    assert list(labels.LOCATIONS) == sorted(labels.LOCATIONS)
    assert list(labels.LOCATION_CATEGORIES) == sorted(labels.LOCATION_CATEGORIES)


def test_no_label_is_ignored_and_an_unknown_one_refused() -> None:
    assert labels.encode("location", None) == labels.IGNORED
    with pytest.raises(labels.UnknownLabelError, match="'Elbow' is not a class of location"):
        labels.encode("location", "Elbow")


@pytest.mark.medpix
def test_classes_are_those_of_the_real_training_split(medpix_database: Database[Document]) -> None:
    images = medpix_database["Image_Descriptions"]
    train = {"split": "train"}
    assert tuple(sorted(images.distinct("norm.location", train))) == labels.LOCATIONS
    assert tuple(sorted(images.distinct("norm.location_category", train))) == labels.LOCATION_CATEGORIES
    assert set(images.distinct("norm.location")) - set(labels.LOCATIONS) == {None}
