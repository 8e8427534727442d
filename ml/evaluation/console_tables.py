"""The figures of an evaluation as tables for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from ml.evaluation.evaluate import MAJORITY
from ml.evaluation.retrieval import CUTOFFS, KINDS, RELEVANT

_COLUMNS = ("accuracy", "95%", "bal. acc.", "macro F1", "95%", "NLL", "ECE", "95%", "before T", "dev")


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """One table per task, and one each of retrieval, cross-validation and seeds where they were measured."""
    for task, task_results in results["tasks"].items():
        yield _task_table(results, task, task_results)
    if any(row["retrieval"] for row in results["models"].values()):
        yield _retrieval_table(results)
    if results["cv"]:
        yield _cv_table(results["cv"])
    if results["seeds"]:
        yield _seeds_table(results)


def _task_table(results: Mapping[str, Any], task: str, task_results: Mapping[str, Any]) -> Table:
    """Majority row, models, models that are not trained, and published baselines."""
    majority, absent = task_results["majority"], task_results["absent"]
    missing = f" Absent: {'; '.join(absent)}." if absent else ""
    table = Table(
        title=f"{task}: {majority['n']} {results['split']['split']} images of {majority['cases']} cases, "
        f"{len(task_results['present'])} of {len(task_results['classes'])} classes present",
        caption=f"95% intervals from {results['bootstrap']['resamples']} resamples of cases. "
        f"F1 and balanced accuracy are over the classes present.{missing} "
        "before T: ECE before the temperature. * chosen on dev.",
    )
    table.add_column("model")
    table.add_column("start")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    table.add_row(f"{MAJORITY} ({majority['class']})", "", *_figures(majority, None, None), style="dim")
    for name in task_results["models"]:
        row = results["models"][name]
        own = row["tasks"][task]
        mark = "*" if name == task_results["best_on_dev"] else ""
        table.add_row(name + mark, row["start"], *_figures(own["scores"], own["calibration"]["before"], own["dev"]))
    for row in task_results["untrained"]:
        table.add_row(row["name"], "not trained", style="dim")
    for row in task_results["quoted"]:
        mark = "published" if row["comparable"] else "published, not a test figure"
        f1 = "" if row["macro_f1"] is None else f"{row['macro_f1']:.2f}"
        table.add_row(escape(f"{row['name']} [{mark}]"), "", f"{row['accuracy']:.3g}", "", "", f1, style="italic dim")
    return table


def _retrieval_table(results: Mapping[str, Any]) -> Table:
    """Recalls of the models that embed captions among images, with those of a random order."""
    table = Table(
        title=f"caption-to-image retrieval on {results['split']['split']}",
        caption=f"R@k: a relevant image is among the first k. 95% intervals from {results['bootstrap']['resamples']} "
        f"resamples of cases; random: expected of a random order. {RELEVANT}",
    )
    for name in ("model", "relevant"):
        table.add_column(name)
    for name in ("captions", *(column for k in CUTOFFS for column in (f"R@{k}", "95%", "random"))):
        table.add_column(name, justify="right")
    for name, row in results["models"].items():
        if (figures := row["retrieval"]) is None:
            continue
        for kind in KINDS:
            cells = [
                cell
                for k in map(str, CUTOFFS)
                for cell in (
                    f"{figures[kind]['recall_at'][k]:.3f}",
                    span(figures[kind]["recall_at_95"][k]),
                    f"{figures[kind]['random_at'][k]:.3f}",
                )
            ]
            table.add_row(name, kind, str(figures["queries"]), *cells)
    return table


def remarks(results: Mapping[str, Any]) -> Iterator[str]:
    """What to know before a row is compared with the original of the same name."""
    for name, row in results["models"].items():
        yield from (f"{name}: {remark}." for remark in row["remarks"])


def _cv_table(cv: Mapping[str, Any]) -> Table:
    table = Table(title="cross-validation: folds of whole patients", caption=_caption(cv))
    for name in ("model", "task"):
        table.add_column(name)
    for name in ("n", "accuracy", "95%", "macro F1", "95%", "ECE", "mean of folds", "SD of folds"):
        table.add_column(name, justify="right")
    for name, tasks in cv.items():
        for task, s in tasks.items():
            figures = [f"{s['accuracy']:.3f}", span(s["accuracy_95"]), f"{s['macro_f1']:.3f}", span(s["macro_f1_95"])]
            figures += [_three(s, "ece"), _three(s, "folds_mean")]
            sd = "" if s["folds_sd"] is None else _three(s, "folds_sd")
            table.add_row(_marked(name, s), task, str(s["n"]), *figures, sd)
    return table


def _caption(task_results: Mapping[str, Any]) -> str | None:
    if all(figures["run"]["official"] for tasks in task_results.values() for figures in tasks.values()):
        return None
    return "? a quick try, or another recipe than the registered model's: not on its card"


def _marked(name: str, figures: Mapping[str, Any]) -> str:
    return name + ("" if figures["run"]["official"] else " ?")


def _three(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]:.3f}"


def _seeds_table(results: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"seeds, on {results['split']['split']}: mean ± standard deviation",
        caption=_caption(results["seeds"]),
    )
    for name in ("model", "task", "seeds"):
        table.add_column(name)
    for name in ("accuracy", "bal. acc.", "macro F1", "ECE", "NLL", "registered: accuracy"):
        table.add_column(name, justify="right")
    for name, tasks in results["seeds"].items():
        for task, s in tasks.items():
            spread = [
                f"{s['figures'][key]['mean']:.3f} ± {s['figures'][key]['sd']:.3f}"
                for key in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll")
            ]
            registered_row = results["models"].get(name)
            registered = "" if registered_row is None else _three(registered_row["tasks"][task]["scores"], "accuracy")
            table.add_row(_marked(name, s), task, ", ".join(map(str, s["seeds"])), *spread, registered)
    return table


def _figures(scores: Mapping[str, Any], before: Mapping[str, Any] | None, dev: Mapping[str, Any] | None) -> list[str]:
    return [
        _three(scores, "accuracy"),
        span(scores["accuracy_95"]),
        _three(scores, "balanced_accuracy"),
        _three(scores, "macro_f1"),
        span(scores["macro_f1_95"]),
        _three(scores, "nll"),
        _three(scores, "ece"),
        span(scores["ece_95"]),
        "" if before is None else _three(before, "ece"),
        "" if dev is None else _three(dev, "accuracy"),
    ]


def span(pair: list[float] | None) -> str:
    """An interval in words: 0.91 to 0.99."""
    return "" if pair is None else f"{pair[0]:.2f}–{pair[1]:.2f}"
