"""The figures of an evaluation as tables for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from ml.evaluate import MAJORITY


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """One table per task (majority row, models, rows quoted from others), and one of cross-validation."""
    split = results["split"]["split"]
    for task, found in results["tasks"].items():
        majority = found["majority"]
        table = Table(
            title=f"{task}: {majority['n']} {split} images of {majority['cases']} cases, "
            f"{majority['classes_present']} of {len(found['classes'])} classes present",
            caption=f"95% intervals from {results['bootstrap']['resamples']} resamples of cases; naive: of images. "
            "F1 and balanced accuracy are over the classes present.",
        )
        table.add_column("model")
        for name in ("accuracy", "95%", "naive 95%", "bal. acc.", "macro F1", "95%", "NLL", "Brier", "ECE", "dev"):
            table.add_column(name, justify="right")
        table.add_row(*_row(f"{MAJORITY} ({majority['class']})", majority, None), style="dim")
        for name in found["models"]:
            own = results["models"][name]["tasks"][task]
            table.add_row(*_row(name, own["scores"], own["dev"]))
        for row in found["quoted"]:
            mark = "quoted" if row["comparable"] else "quoted, not a test figure"
            f1 = "" if row["macro_f1"] is None else f"{row['macro_f1']:.2f}"
            table.add_row(
                f"{row['name']} [{mark}]".replace("[", r"\["),
                f"{row['accuracy']:.3g}",
                *[""] * 3,
                f1,
                style="italic dim",
            )
        yield table
    if results["cv"] is not None:
        yield _cv_table(results["cv"])


def _cv_table(cv: Mapping[str, Any]) -> Table:
    table = Table(title=f"cross-validation: {cv['images']} images in {cv['folds']} folds of whole cases")
    for name in ("model", "task"):
        table.add_column(name)
    for name in ("n", "accuracy", "95%", "macro F1", "95%", "mean of folds", "SD of folds"):
        table.add_column(name, justify="right")
    for name, tasks in cv["models"].items():
        for task, s in tasks.items():
            figures = [f"{s['accuracy']:.3f}", span(s["accuracy_95"]), f"{s['macro_f1']:.3f}", span(s["macro_f1_95"])]
            table.add_row(name, task, str(s["n"]), *figures, f"{s['folds_mean']:.3f}", f"{s['folds_sd']:.3f}")
    return table


def _row(name: str, scores: Mapping[str, Any], dev: Mapping[str, Any] | None) -> list[str]:
    return [
        name,
        f"{scores['accuracy']:.3f}",
        span(scores["accuracy_95"]),
        span(scores["accuracy_95_images"]),
        f"{scores['balanced_accuracy']:.3f}",
        f"{scores['macro_f1']:.3f}",
        span(scores["macro_f1_95"]),
        f"{scores['nll']:.3f}",
        f"{scores['brier']:.3f}",
        f"{scores['ece']:.3f}",
        "" if dev is None else f"{dev['accuracy']:.3f}",
    ]


def span(pair: list[float] | None) -> str:
    """An interval in words: 0.91 to 0.99."""
    return "" if pair is None else f"{pair[0]:.2f}–{pair[1]:.2f}"
