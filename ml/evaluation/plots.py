"""The plots of an evaluation as PNG files in memory."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BLUE: Final = "#1f5fa8"
_GREY: Final = "#8a8f98"
_DPI: Final = 130
_HALF: Final = (4.7, 3.9)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without date and version of the library the same figures give the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="#e3e5e8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def accuracy_plot(
    task: str, rows: Sequence[tuple[str, Mapping[str, Any]]], quoted: Sequence[Mapping[str, Any]]
) -> bytes:
    """Accuracy of every row with its interval over cases; published baselines as hollow marks.

    Args:
        task: for the title.
        rows: names and scores of what was run.
        quoted: published baselines.
    """
    comparable = [row for row in quoted if row["comparable"]]
    names = [name for name, _ in rows] + [f"{row['name']} (published)" for row in comparable]
    figure = Figure(figsize=(7.5, 1.1 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    for position, (_, scores) in enumerate(rows):
        low, high = scores["accuracy_95"]
        axes.plot([low, high], [position, position], color=_BLUE, linewidth=2)
        axes.plot(scores["accuracy"], position, "o", color=_BLUE)
    for position, row in enumerate(comparable, start=len(rows)):
        axes.plot(row["accuracy"], position, "o", markerfacecolor="white", color=_GREY)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    _frame(axes, f"{task}: accuracy, 95% interval over cases", "accuracy", "")
    return _png(figure)


def reliability_plot(calibration: Mapping[str, Any]) -> bytes:
    """The reliability diagram before and after temperature."""
    figure = Figure(figsize=_HALF, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    for name, colour in (("before", _GREY), ("after", _BLUE)):
        bins = calibration[name]["reliability"]
        confidence, accuracy = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        label = f"{name} temperature: ECE {calibration[name]['ece']:.3f}"
        axes.plot(confidence, accuracy, color=colour, linewidth=1, label=label)
        axes.scatter(confidence, accuracy, [10 + 2 * b["n"] for b in bins], color=colour, alpha=0.7)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.04)
    # Above the axes: every corner of the diagram may hold a mark.
    figure.legend(loc="outside upper left", fontsize=9, frameon=False, ncols=2, handlelength=1.2, columnspacing=1)
    _frame(axes, "Reliability; area of a mark: its images", "confidence", "accuracy")
    return _png(figure)


def coverage_plot(curve: Sequence[Sequence[float]], confident: Mapping[str, Any]) -> bytes:
    """Accuracy by the share of images that are answered, and where the model's threshold lies."""
    figure = Figure(figsize=_HALF, layout="constrained")
    axes = figure.subplots()
    coverage = np.array(curve)
    axes.plot(coverage[:, 0], coverage[:, 1], color=_BLUE, linewidth=1.5)
    if confident["n"]:
        label = f"confident ({confident['threshold']:.2f} or more)"
        axes.plot(confident["coverage"], confident["accuracy"], "o", color=_BLUE, label=label)
        figure.legend(loc="outside upper left", fontsize=9, frameon=False)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(min(0.5, float(coverage[:, 1].min())) - 0.02, 1.02)
    _frame(axes, "Risk–coverage curve", "share answered", "accuracy among them")
    return _png(figure)


def confusion_plot(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> bytes:
    """The confusion matrix of the classes that occur as truth or as answer; colours are row shares."""
    counts = np.array(matrix)
    occurring = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    counts = counts[np.ix_(occurring, occurring)]
    names = [classes[k] for k in occurring.tolist()]
    side = 1.6 + 0.42 * len(names)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts > 0):
        colour = "white" if shares[i, j] > 0.6 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), [f"{n} ({counts[i].sum()})" for i, n in enumerate(names)], fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth (images)")
    return _png(figure)
