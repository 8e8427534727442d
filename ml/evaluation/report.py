"""Writes an evaluation to a folder: results.json, report.html and the plots."""

import base64
import copy
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.core.exceptions import UserError
from app.core.files import sync
from ml.evaluation.card_sections import as_markdown, card_sections
from ml.evaluation.console_tables import span
from ml.evaluation.evaluate import MAJORITY, Results
from ml.evaluation.plots import accuracy_plot, confusion_plot, coverage_plot, reliability_plot
from ml.evaluation.splits import NEAR
from ml.registry.model_card import INTENDED_USE
from ml.training.calibration import TARGET_ACCURACY

RESULTS_FILE: Final = "results.json"
REPORT_FILE: Final = "report.html"
CARD_SUFFIX: Final = "model-card.md"
_WRITING: Final = ".writing-"


class ReportError(UserError):
    """The report could not be written."""


def make_folder(folder: Path) -> None:
    """Make the folder of a report, before the minutes that its content takes.

    Raises:
        ReportError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ReportError(f"the report could not be written to {folder}: {error}") from error


def write_report(results: Results, folder: Path) -> Path:
    """Write results.json, report.html, which needs no other file, the plots as PNG and the model cards.

    All files are written before the first one takes its place; files of the report before that are
    not among them are removed, other files stay.

    Args:
        results: from ``ml.evaluation.evaluate.evaluate``.
        folder: made if it is not there.

    Returns:
        The path of the report.

    Raises:
        ReportError: the folder cannot be written; the report that was there is as it was.
    """
    make_folder(folder)
    plots = make_plots(results)
    files = {REPORT_FILE: render(results, plots).encode()} | plots
    for name in results["models"]:
        files[f"{name}-{CARD_SUFFIX}"] = as_markdown(name, card_sections(name, results)).encode()
    content = without_thumbnails(results) | {"files": sorted([*files, RESULTS_FILE])}
    # The last one to take its place: the service reads it.
    files[RESULTS_FILE] = (json.dumps(content, indent=1) + "\n").encode()
    try:
        _remove_half_written(folder)
        before = _files_of(folder)
        with TemporaryDirectory(prefix=_WRITING, dir=folder) as temporary:
            for name, data in files.items():
                path = Path(temporary) / name
                path.write_bytes(data)
                sync(path)
            for name in files:
                (Path(temporary) / name).replace(folder / name)
        for name in before - files.keys():
            (folder / name).unlink(missing_ok=True)
        sync(folder)
    except OSError as error:
        raise ReportError(f"the report could not be written to {folder}: {error}") from error
    return folder / REPORT_FILE


def _remove_half_written(folder: Path) -> None:
    """What a kill left; a report takes seconds to write."""
    for path in folder.glob(f"{_WRITING}*"):
        if time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def read_results(folder: Path) -> Results | None:
    """What ``write_report`` wrote as results.json, None where there is none that can be read."""
    try:
        content = json.loads((folder / RESULTS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _files_of(folder: Path) -> set[str]:
    """The files of the report that is in a folder, as far as it says so: plain names."""
    names = (read_results(folder) or {}).get("files", [])
    return {name for name in names if isinstance(name, str) and name == Path(name).name not in ("", "..")}


def make_plots(results: Results) -> dict[str, bytes]:
    """The plots as PNG, by file name."""
    plots = {}
    for task, row in results["tasks"].items():
        rows = [(MAJORITY, row["majority"])]
        rows += [(name, results["models"][name]["tasks"][task]["scores"]) for name in row["models"]]
        plots[f"{task}-accuracy.png"] = accuracy_plot(task, rows, row["quoted"])
        for name in row["models"]:
            own = results["models"][name]["tasks"][task]
            plots[f"{name}-{task}-reliability.png"] = reliability_plot(own["calibration"])
            plots[f"{name}-{task}-coverage.png"] = coverage_plot(own["risk_coverage"], own["confident"])
            plots[f"{name}-{task}-confusion.png"] = confusion_plot(**own["confusion"])
    return plots


def render(results: Results, plots: Mapping[str, bytes]) -> str:
    """The report as one HTML page that loads nothing."""
    environment = Environment(
        loader=PackageLoader("ml", "evaluation"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(span=span, three=_three, signed=_signed, spoken=lambda task: task.replace("_", " "))
    images = {name: "data:image/png;base64," + base64.b64encode(data).decode("ascii") for name, data in plots.items()}
    cards = {name: card_sections(name, results) for name in results["models"]}
    environment.globals.update(majority=MAJORITY, near=NEAR, intended_use=INTENDED_USE, target_accuracy=TARGET_ACCURACY)
    return environment.get_template("report.html").render(r=results, images=images, cards=cards)


def without_thumbnails(results: Results) -> Results:
    """The results without the thumbnails, which would be most of the file."""
    content = copy.deepcopy(results)
    for task in content["tasks"].values():
        for item in task["audit"]["items"]:
            del item["thumbnail"]
    return content


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
