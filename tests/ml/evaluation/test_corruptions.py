import numpy as np
import pytest
from PIL import Image

from ml.dataset import labels
from ml.evaluation import robustness
from ml.evaluation.corruptions import CORRUPTIONS
from ml.evaluation.evaluate import Results


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(60, 200, (160, 200), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_change_of_every_mode_is_an_image_that_differs(kind: str, mode: str) -> None:
    image = picture().convert(mode)
    for edit in CORRUPTIONS[kind].values():
        edited = edit(image)
        assert max(edited.size) == 200 or kind == "resampled"
        same = np.asarray(edited.convert("L").resize(image.size)) == np.asarray(image.convert("L"))
        assert same.mean() < 0.9


def test_what_the_shortcuts_measure_is_not_measured_again() -> None:
    image = picture()
    edited = [np.asarray(edit(image).convert("L")) for edits in CORRUPTIONS.values() for edit in edits.values()]
    for shortcut in robustness.EDITS.values():
        bands = np.asarray(shortcut(image).convert("L"))
        assert not any(np.array_equal(each, bands) for each in edited)


def test_severities_grow() -> None:
    blocks = np.kron(np.indices((8, 10)).sum(axis=0) % 2, np.ones((20, 20))) * 215 + 20
    image = Image.fromarray(blocks.astype(np.uint8))
    before = np.asarray(image, dtype=np.float64)
    for kind, severities in CORRUPTIONS.items():
        changes = [
            np.abs(np.asarray(edit(image).convert("L").resize(image.size), dtype=np.float64) - before).mean()
            for edit in severities.values()
        ]
        assert changes == sorted(changes), kind


def test_the_table_of_an_evaluation(results: Results) -> None:
    tasks = results["models"]["compact"]["tasks"]
    for task in labels.TASKS:
        rows = tasks[task]["corruptions"]
        assert [(row["kind"], row["severity"]) for row in rows] == [
            (kind, severity) for kind, severities in CORRUPTIONS.items() for severity in severities
        ]
        whole = tasks[task]["scores"]
        for row in rows:
            assert row["n"] == whole["n"]
            difference = row["whole_is_better_by"]["difference"]
            assert row["accuracy"] + difference == pytest.approx(whole["accuracy"], abs=1e-9)
            assert row["confident"]["threshold"] == results["models"]["compact"]["card"]["thresholds"][task]
    assert results["models"]["fused-location"]["tasks"][labels.LOCATION]["corruptions"] == []
