import copy
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ml.evaluate import Results
from ml.evaluation.plots import confusion_plot
from ml.evaluation.terminal import tables
from ml.report import ReportError, make_plots, render, without_thumbnails, write_report

HOSTILE = '"><script>alert(1)</script>'


class Page(HTMLParser):
    """The links, scripts and table rows of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture(scope="session")
def plots(results: Results) -> dict[str, bytes]:
    return make_plots(results)


def test_the_folder_holds_page_figures_and_plots(results: Results, tmp_path: Path) -> None:
    (tmp_path / "new" / "folder").mkdir(parents=True)
    (tmp_path / "new" / "folder" / "results.json").write_text("of an evaluation before")
    report = write_report(results, tmp_path / "new" / "folder")
    assert report == tmp_path / "new" / "folder" / "report.html"
    assert json.loads((report.parent / "results.json").read_text()) == json.loads(
        json.dumps(without_thumbnails(results))
    )
    names = {path.name for path in report.parent.iterdir()}
    assert {
        "modality-accuracy.png",
        "compact-modality-calibration.png",
        "fused-location-location-confusion.png",
    } < names
    for path in report.parent.glob("*.png"):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100


def test_the_page_loads_nothing_and_runs_nothing(results: Results, plots: dict[str, bytes]) -> None:
    page = Page(render(results, plots))
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_the_rows_hold_the_figures(results: Results, plots: dict[str, bytes]) -> None:
    rows = Page(render(results, plots)).rows
    for task, found in results["tasks"].items():
        for name in found["models"]:
            scores = results["models"][name]["tasks"][task]["scores"]
            low, high = scores["accuracy_95"]
            wanted = f"{scores['accuracy']:.3f} {low:.2f}–{high:.2f}"
            assert any(row and row[0] == name and row[2].strip() == wanted for row in rows), (task, name)
    quoted = {row[0].strip(): [cell.strip() for cell in row] for row in rows if "quoted" in row[1:2]}
    assert quoted["clip-location"][2] == "0.78 (not a test figure)"
    assert quoted["resnet50-location"][5] == "0.31"
    assert "5 classes" in quoted["RN50x16 + BioBERT, prompts"][-1]


def test_texts_of_the_dataset_cannot_become_code(results: Results, plots: dict[str, bytes]) -> None:
    changed = copy.deepcopy(results)
    item = {"u_id": "MPX1", "label": "Spine", "answer": "Vascular", "probability": 0.9, "probability_of_label": 0.1}
    item |= {"caption": HOSTILE, "image": HOSTILE, "thumbnail": "data:image/jpeg;base64,"}
    changed["tasks"]["location"]["audit"]["items"] = [item]
    text = render(changed, plots)
    assert HOSTILE not in text
    assert "alert(1)" in text
    assert "script" not in Page(text).tags


def test_leaks_are_shown(results: Results, plots: dict[str, bytes]) -> None:
    changed = copy.deepcopy(results)
    name = {"image": "MPX1_synpic1", "u_id": "MPX1", "split": "train"}
    other = {"image": "MPX2_synpic2", "u_id": "MPX2", "split": "test"}
    changed["leakage"] |= {"same_pixels": [[name, other]], "suspect_cases": ["MPX2"], "shared_cases": ["MPX3"]}
    text = " ".join(render(changed, plots).split())
    assert "MPX1_synpic1 (train) = MPX2_synpic2 (test)" in text
    assert "Cases in more than one split: 1 (MPX3)" in text
    assert "without the suspect cases of this split (MPX2)" in text


def test_cross_validation_is_shown(results: Results, plots: dict[str, bytes]) -> None:
    scores = results["models"]["compact"]["tasks"]["modality"]["scores"]
    own = scores | {"accuracy": 0.875, "folds": [0.85, 0.9], "folds_mean": 0.8754, "folds_sd": 0.0354}
    changed = results | {"cv": {"folds": 2, "images": 77, "seed": 0, "models": {"compact": {"modality": own}}}}
    rows = Page(render(changed, plots)).rows
    row = next(row for row in rows if row and row[0] == "compact" and row[-1].strip() == "0.035")
    assert row[-2].strip() == "0.875"
    stream = io.StringIO()
    Console(file=stream, width=180).print(list(tables(changed))[-1])
    assert "77 images in 2 folds" in stream.getvalue()
    assert "0.035" in stream.getvalue()


def test_the_terminal_shows_a_table_per_task(results: Results) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=180)
    found = list(tables(results))
    for table in found:
        console.print(table)
    text = stream.getvalue()
    assert [str(table.title).split(":")[0] for table in found] == list(results["tasks"])
    scores = results["models"]["fused-location"]["tasks"]["location"]["scores"]
    line = next(line for line in text.splitlines() if "fused-location" in line)
    assert f"{scores['accuracy']:.3f}" in line
    assert "clip-location [quoted, not a test figure]" in text
    assert f"{scores['classes_present']} of 21 classes present" in text


def test_confusions_of_one_class_can_be_drawn() -> None:
    with Image.open(io.BytesIO(confusion_plot(["CT", "MR"], [[3, 0], [0, 0]]))) as image:
        assert image.format == "PNG"


def test_a_folder_that_cannot_be_written_is_named(results: Results, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ReportError, match=r"the report could not be written to .*taken"):
        write_report(results, tmp_path / "taken")
