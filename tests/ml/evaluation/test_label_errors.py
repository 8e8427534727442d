import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ml.dataset.records import Record
from ml.evaluation.label_errors import disagreements, thumbnail
from ml.evaluation.scoring import LabelledPredictions


@pytest.fixture
def records(train_records: list[Record]) -> list[Record]:
    """Five records; the second and the third are of one case."""
    first = {record.u_id: record for record in train_records}
    chosen = list(first.values())[:5]
    return [chosen[0], chosen[1], replace(chosen[2], u_id=chosen[1].u_id), *chosen[3:]]


def predictions(records: list[Record], rows: list[list[float]]) -> LabelledPredictions:
    return LabelledPredictions(
        np.array(rows, dtype=np.float32),
        np.zeros(len(rows), dtype=np.int64),
        np.array([record.u_id for record in records]),
        np.array([record.image for record in records]),
    )


def test_the_surest_come_first_and_one_of_each_case_and_answer(records: list[Record]) -> None:
    rows = [[0.4, 0.6, 0.0], [0.1, 0.8, 0.1], [0.05, 0.9, 0.05], [0.9, 0.1, 0.0], [0.2, 0.1, 0.7]]
    whole = disagreements(predictions(records, rows), ("CT", "MR", "PET"), records)
    items = whole["items"]
    assert whole["found"] == 3
    assert [item["image"] for item in items] == [records[k].image for k in (2, 4, 0)]
    assert [(item["label"], item["answer"]) for item in items] == [("CT", "MR"), ("CT", "PET"), ("CT", "MR")]
    assert items[0]["probability"] == pytest.approx(0.9)
    assert items[0]["probability_of_label"] == pytest.approx(0.05)
    first = disagreements(predictions(records, rows), ("CT", "MR", "PET"), records, limit=1)
    assert (len(first["items"]), first["found"]) == (1, 3)


def test_agreement_leaves_nothing(records: list[Record]) -> None:
    result = disagreements(predictions(records, [[0.9, 0.1, 0.0]] * 5), ("CT", "MR", "PET"), records)
    assert result == {"found": 0, "items": []}


def test_a_thumbnail_is_a_small_picture(records: list[Record]) -> None:
    kind, _, data = thumbnail(records[0]).partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (224, 224)
        assert np.asarray(image).max() > 50
