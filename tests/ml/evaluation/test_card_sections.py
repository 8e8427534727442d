import copy
from typing import Any

import pytest

from ml.evaluation.card_sections import Section, as_markdown, card_sections
from ml.evaluation.evaluate import Results


@pytest.fixture
def changed(results: Results) -> Results:
    """Results that the test may change."""
    return copy.deepcopy(results)


def section(sections: list[Section], title: str) -> Section:
    return next(each for each in sections if each.title == title)


def test_a_card_says_where_a_model_comes_from(results: Results) -> None:
    row = results["models"]["fused-location"]
    sections = card_sections("fused-location", results)
    assert [part.title for part in sections] == [
        "Model",
        "Intended use",
        "Not for",
        "Data",
        "Metrics",
        "Limits",
        "Training",
    ]
    model, data = dict(section(sections, "Model").facts), dict(section(sections, "Data").facts)
    assert model["Version"] == row["version"]
    assert model["sha256 of the model"] == row["sha256"]
    assert {value for name, value in model.items() if name.startswith("sha256 of ")} >= {
        file["sha256"] for file in row["card"]["files"]
    }
    assert f"location {row['card']['thresholds']['location']:.3f}" in model["Confident from"]
    assert model["Out-of-distribution threshold"].startswith("above a Mahalanobis distance of ")
    assert data["sha256 of these records"] == row["card"]["data"]["snapshot"]
    assert data["sha256 of the scored split"] == results["split"]["content_sha256"]
    assert "licence" in section(sections, "Data").text[0]
    training = dict(section(sections, "Training").facts)
    assert training["Seed"] == str(row["seed"])
    assert f"torch {row['card']['environment']['packages']['torch']}" in training["Packages"]
    assert '"fusion"' in training["Settings"]


def test_a_card_has_the_figures_of_every_measurement(changed: Results) -> None:
    scores = changed["models"]["compact"]["tasks"]["modality"]["scores"]
    run: dict[str, Any] = {"official": True, "options": {"epochs": None}}
    folds = scores | {"accuracy": 0.875, "folds": [0.85, 0.9], "run": run}
    spread = {key: {"mean": 0.9111, "sd": 0.0123} for key in ("accuracy", "macro_f1", "ece")}
    changed["cv"] = {"compact": {"modality": folds}}
    changed["seeds"] = {"compact": {"modality": {"n": 7, "seeds": [0, 1], "figures": spread, "run": run}}}
    rows = [row for row in section(card_sections("compact", changed), "Metrics").rows if row[0] == "modality"]
    low, high = scores["accuracy_95"]
    assert rows[0][1:4] == ["test", str(scores["n"]), f"{scores['accuracy']:.3f} [{low:.2f}, {high:.2f}]"]
    assert {row[1] for row in rows} >= {"dev", "2 folds of all cases", "test, mean and SD of 2 seeds"}
    assert rows[-1][3] == "0.911 ± 0.012"
    run["official"] = False
    rows = [list(row) for row in section(card_sections("compact", changed), "Metrics").rows]
    other = ", another recipe than the registered model's"
    assert {row[1] for row in rows} >= {f"2 folds of all cases{other}", f"test, mean and SD of 2 seeds{other}"}
    run["options"]["epochs"] = 2
    rows = [list(row) for row in section(card_sections("compact", changed), "Metrics").rows]
    assert {row[1] for row in rows} >= {"2 folds of all cases, quick try of 2 epochs"}


def test_the_limits_are_those_of_this_model(changed: Results) -> None:
    own = changed["models"]["fused-location"]["tasks"]["location"]
    own["per_class"][0] |= {"class": "Spine", "support": 3, "recall": 0.0}
    changed["tasks"]["location"]["absent"] = ["Endocrine", "Nerve, central"]
    own["subgroups"] = {
        "sex": {"male": {"n": 30, "cases": 9, "accuracy": 0.5}, "female": {"n": 30, "cases": 8, "accuracy": 0.25}},
        "plane": {"Axial": {"n": 3, "cases": 2, "accuracy": 0.0}},
    }
    changed["models"]["fused-location"]["remarks"] = ["trained from scratch"]
    text = "\n".join(section(card_sections("fused-location", changed), "Limits").text)
    assert "Location: never right about Spine (3)" in text
    assert "nothing is known about Endocrine; Nerve, central" in text
    assert "weakest subgroup of 20 or more images is sex female, 0.250 on 30 images of 8 cases" in text
    assert "Location: without a caption accuracy is " in text
    assert "Trained from scratch." in text
    alone = changed["models"]["compact"]["tasks"]["modality"]["shortcuts"]["text bands alone"]["accuracy"]
    limits = "\n".join(section(card_sections("compact", changed), "Limits").text)
    assert f"Modality: from the bands with burned-in text alone accuracy is {alone:.3f}" in limits


def test_markdown_has_every_part_and_no_torn_table() -> None:
    parts = [
        Section("Model", ["One line."], [("a|b", "c\nd")]),
        Section("Limits", ["first", "second"]),
        Section("Metrics", head=["Task", "n"], rows=[["modality", "7"]]),
    ]
    lines = as_markdown("compact", parts).splitlines()
    assert lines[0] == "# compact"
    assert "| a\\|b | c d |" in lines
    assert lines[lines.index("- first") + 1] == "- second"
    assert lines[lines.index("| Task | n |") + 1 :][:2] == ["|---|---|", "| modality | 7 |"]
