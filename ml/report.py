"""Writes an evaluation to a folder: results.json, report.html and the plots."""

import base64
import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.config import MendableError
from ml.card import INTENDED_USE, LIMITS
from ml.evaluate import MAJORITY, Results
from ml.evaluation.plots import accuracy_plot, calibration_plot, confusion_plot
from ml.evaluation.terminal import span
from ml.files import replaced, write_json

RESULTS_FILE: Final = "results.json"
REPORT_FILE: Final = "report.html"


class ReportError(MendableError):
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
    """Write results.json, report.html, which needs no other file, and the plots as PNG.

    Args:
        results: from ``ml.evaluate.evaluate``.
        folder: made if it is not there; files of the same names are replaced.

    Returns:
        The path of the report.

    Raises:
        ReportError: the folder cannot be written.
    """
    make_folder(folder)
    plots = make_plots(results)
    page = render(results, plots)
    try:
        for name, data in plots.items():
            with replaced(folder / name) as path:
                path.write_bytes(data)
        with replaced(folder / RESULTS_FILE) as path:
            write_json(path, without_thumbnails(results))
        with replaced(folder / REPORT_FILE) as path:
            path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ReportError(f"the report could not be written to {folder}: {error}") from error
    return folder / REPORT_FILE


def make_plots(results: Results) -> dict[str, bytes]:
    """The plots as PNG, by file name."""
    plots = {}
    for task, found in results["tasks"].items():
        rows = [(MAJORITY, found["majority"])]
        rows += [(name, results["models"][name]["tasks"][task]["scores"]) for name in found["models"]]
        plots[f"{task}-accuracy.png"] = accuracy_plot(task, rows, found["quoted"])
        for name in found["models"]:
            own = results["models"][name]["tasks"][task]
            plots[f"{name}-{task}-calibration.png"] = calibration_plot(own["calibration"], own["risk_coverage"])
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
    environment.filters.update(span=span, three=_three, signed=_signed)
    images = {name: "data:image/png;base64," + base64.b64encode(data).decode("ascii") for name, data in plots.items()}
    template = environment.get_template("report.html")
    return template.render(r=results, images=images, majority=MAJORITY, intended_use=INTENDED_USE, limits=LIMITS)


def without_thumbnails(results: Results) -> Results:
    """The results without the pictures, which would be most of the file."""
    found = copy.deepcopy(results)
    for task in found["tasks"].values():
        for item in task["audit"]["items"]:
            del item["thumbnail"]
    return found


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"
