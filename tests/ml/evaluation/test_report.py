import copy
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ml.dataset.records import Record
from ml.evaluation.card_sections import as_markdown, card_sections
from ml.evaluation.console_tables import remarks, tables
from ml.evaluation.evaluate import Results
from ml.evaluation.plots import confusion_plot
from ml.evaluation.published_baselines import baselines_for
from ml.evaluation.report import ReportError, make_plots, read_results, render, without_thumbnails, write_report
from ml.evaluation.retrieval import KINDS, retrieval
from ml.registry.reference_embeddings import normalise

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
    names = {path.name for path in report.parent.iterdir()}
    expected = json.loads(json.dumps(without_thumbnails(results))) | {"files": sorted(names)}
    assert json.loads((report.parent / "results.json").read_text()) == read_results(report.parent) == expected
    assert {
        "modality-accuracy.png",
        "compact-modality-reliability.png",
        "compact-modality-coverage.png",
        "fused-location-location-confusion.png",
        "caption-location-model-card.md",
    } < names
    assert (report.parent / "compact-model-card.md").read_text().startswith("# compact\n")
    for path in report.parent.glob("*.png"):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100


def test_no_file_of_the_report_before_stays_and_no_other_is_touched(results: Results, tmp_path: Path) -> None:
    write_report(results, tmp_path)
    (tmp_path / "notes.png").write_text("mine")
    (tmp_path / "test-compact").mkdir()
    fewer = copy.deepcopy(results)
    del fewer["models"]["compact"]
    for task in fewer["tasks"].values():
        task["models"] = [name for name in task["models"] if name != "compact"]
        task["best_on_dev"] = "fused-location"
    del fewer["tasks"]["modality"]
    write_report(fewer, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in names if name.startswith(("compact-", "modality-", "."))]
    assert {"notes.png", "test-compact", "fused-location-location-confusion.png"} < names
    assert set(json.loads((tmp_path / "results.json").read_text())["files"]) == names - {"notes.png", "test-compact"}


def test_a_full_disk_leaves_the_report_that_was_there(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(results, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written: list[str] = []
    write_bytes = Path.write_bytes

    def fails_at_the_end(path: Path, data: bytes) -> int:
        written.append(path.name)
        if path.name == "results.json":
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fails_at_the_end)
    with pytest.raises(ReportError, match=r"could not be written .* No space left on device"):
        write_report(results | {"created_at": "2030-01-01T00:00:00"}, tmp_path)
    assert len(written) == len(before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert read_results(tmp_path) is None
    for content in ("[1]", "{"):
        (tmp_path / "results.json").write_text(content)
        assert read_results(tmp_path) is None


def test_names_outside_the_folder_are_never_removed(results: Results, tmp_path: Path) -> None:
    folder, outside = tmp_path / "report", tmp_path / "outside.png"
    outside.write_text("mine")
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"files": ["../outside.png", str(outside), 3, ""]}))
    write_report(results, folder)
    assert outside.exists()


def test_the_page_loads_nothing_and_runs_nothing(results: Results, plots: dict[str, bytes]) -> None:
    page = Page(render(results, plots))
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_the_rows_hold_the_figures(results: Results, plots: dict[str, bytes]) -> None:
    rows = Page(render(results, plots)).rows
    for task, figures in results["tasks"].items():
        for name in figures["models"]:
            scores = results["models"][name]["tasks"][task]["scores"]
            low, high = scores["accuracy_95"]
            cell = f"{scores['accuracy']:.3f} {low:.2f}–{high:.2f}naive "
            assert any(row and row[0].startswith(name) and row[1].startswith(cell) for row in rows), (task, name)
            before = results["models"][name]["tasks"][task]["calibration"]["before"]
            cell = f"{before['ece']:.3f} {before['ece_95'][0]:.2f}–{before['ece_95'][1]:.2f}"
            assert any(row and row[0].startswith(name) and cell in map(str.strip, row) for row in rows), (
                task,
                name,
            )


def test_the_classes_present_and_absent_are_named(results: Results, plots: dict[str, bytes]) -> None:
    text = " ".join(render(results, plots).split())
    location = results["tasks"]["location"]
    assert len(location["present"]) == results["tasks"]["location"]["majority"]["classes_present"]
    present, absent = location["present"], location["absent"]
    assert f"over these {len(present)}: {'; '.join(present)}. Absent: {'; '.join(absent)}." in text


def test_models_that_are_not_trained_have_rows(results: Results, plots: dict[str, bytes]) -> None:
    rows = {row[0].strip(): row[1].strip() for row in Page(render(results, plots)).rows if len(row) == 2}
    assert rows["knn-texture"] == "medpix train knn-texture"
    assert rows["resnet50-modality"] == "medpix train resnet50-modality"
    assert rows["clip-location"] == "medpix train clip-location"


def test_foreign_figures_are_shown_where_there_are_any(results: Results, plots: dict[str, bytes]) -> None:
    assert "Published baselines" not in render(results, plots)
    changed = copy.deepcopy(results)
    for task, figures in changed["tasks"].items():
        figures["quoted"] = baselines_for(task)
    rows = Page(render(changed, plots)).rows
    quoted = {row[0].strip(): [cell.strip() for cell in row] for row in rows if len(row) == 5}
    assert quoted["clip-location"][1] == "0.78 (not a test figure)"
    assert quoted["resnet50-location"][3] == "0.31"
    assert "5 classes" in quoted["RN50x16 + BioBERT, prompts"][-1]
    text = "".join(_printed(changed))
    assert "clip-location [published, not a test figure]" in text


def test_a_row_that_began_otherwise_than_the_original_says_so(results: Results, plots: dict[str, bytes]) -> None:
    changed = copy.deepcopy(results)
    changed["models"]["compact"]["remarks"] = ["trained from scratch: not comparable with the original"]
    assert "* compact: trained from scratch: not comparable with the original." in " ".join(
        render(changed, plots).split()
    )
    assert list(remarks(changed)) == ["compact: trained from scratch: not comparable with the original."]


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
    run = {"official": True, "options": {"seed": 5, "epochs": None}}
    own = scores | {"accuracy": 0.875, "folds": [0.85, 0.9], "folds_mean": 0.8754, "folds_sd": 0.0354, "run": run}
    changed = results | {"cv": {"compact": {"modality": own}}}
    text = render(changed, plots)
    row = next(row for row in Page(text).rows if row and row[0] == "compact" and row[-2].strip() == "0.035")
    assert (row[-3].strip(), row[-1].strip()) == ("0.875", "5")
    assert "quick try" not in text
    printed = _printed(changed)[-1]
    assert "cross-validation" in printed
    assert "0.035" in printed
    run["official"], run["options"] = False, {"seed": 5, "epochs": 2}
    assert "(quick try of 2 epochs: not on its card)" in render(changed, plots)
    assert "compact ?" in _printed(changed)[-1]


def test_seeds_are_shown(results: Results, plots: dict[str, bytes]) -> None:
    figures = {
        key: {"mean": 0.9111, "sd": 0.0123, "values": [0.9, 0.9222]}
        for key in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "brier")
    }
    run = {"official": True, "options": {"seed": 0, "epochs": None}}
    own = {"n": 7, "seeds": [0, 1], "figures": figures, "run": run}
    changed = results | {"seeds": {"compact": {"modality": own}}}
    row = next(row for row in Page(render(changed, plots)).rows if row[2:3] == ["0, 1"])
    registered = results["models"]["compact"]["tasks"]["modality"]["scores"]["accuracy"]
    assert row[3].strip() == "0.911 ± 0.012"
    assert row[4].strip() == "0.900, 0.922"
    assert row[-1].strip().startswith(f"{registered:.3f}")
    printed = _printed(changed)[-1]
    assert "0.911 ± 0.012" in printed
    assert f"{registered:.3f}" in printed


def _printed(results: Results) -> list[str]:
    lines = []
    for table in tables(results):
        stream = io.StringIO()
        Console(file=stream, width=180).print(table)
        lines.append(stream.getvalue())
    return lines


def test_the_terminal_shows_a_table_per_task(results: Results) -> None:
    rich_tables, text = list(tables(results)), "".join(_printed(results))
    assert [str(table.title).split(":")[0] for table in rich_tables] == list(results["tasks"])
    scores = results["models"]["fused-location"]["tasks"]["location"]["scores"]
    line = next(line for line in text.splitlines() if "fused-location" in line)
    assert f"{scores['accuracy']:.3f}" in line
    before = results["models"]["fused-location"]["tasks"]["location"]["calibration"]["before"]["ece"]
    assert f"{before:.3f}" in line
    assert "scratch" in line
    assert f"{scores['classes_present']} of 21 classes present" in text
    assert "Absent: " in text
    assert "not trained" in next(line for line in text.splitlines() if "clip-location " in line)
    assert "not trained" in next(line for line in text.splitlines() if "knn-texture " in line)


def test_confusions_of_one_class_can_be_drawn() -> None:
    with Image.open(io.BytesIO(confusion_plot(["CT", "MR"], [[3, 0], [0, 0]]))) as image:
        assert image.format == "PNG"


def test_a_folder_that_cannot_be_written_is_named(results: Results, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ReportError, match=r"the report could not be written to .*taken"):
        write_report(results, tmp_path / "taken")


def test_retrieval_is_reported_with_intervals_and_the_random_baseline(
    results: Results, test_records: list[Record], plots: dict[str, bytes]
) -> None:
    assert not any("retrieval" in str(table.title) for table in tables(results)), "no model has a space of both"
    changed = copy.deepcopy(results)
    embedded = normalise(np.random.default_rng(0).normal(size=(len(test_records), 8)).astype(np.float32))
    figures = retrieval(embedded, embedded[::-1], test_records)
    assert figures is not None
    changed["models"]["compact"]["retrieval"] = figures
    cells = [f"{figures[kind][name]['10']:.3f}" for kind in KINDS for name in ("recall_at", "random_at")]
    text = "".join(_printed(changed))
    assert "caption-to-image retrieval on test" in text
    card = as_markdown("compact", card_sections("compact", changed))
    assert "## Retrieval" in card
    page = render(changed, plots)
    for figure in cells:
        assert figure in text
        assert figure in card
        assert figure in page
