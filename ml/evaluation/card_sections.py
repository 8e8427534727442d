"""Renders a model card and the scores of an evaluation as sections, for the report and as Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from ml.evaluation.retrieval import CUTOFFS, KINDS, RELEVANT
from ml.models.model_specs import MODEL_SPECS
from ml.registry.model_card import LICENCE, METRICS, NEVER_CONFIDENT, NOT_FOR

# Fewer images say nothing about a subgroup.
_LEAST_OF_SUBGROUP: Final = 20


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a model card.

    Attributes:
        title: of the part.
        text: paragraphs or points.
        facts: names and values.
        head: of the table, empty where there is none.
        rows: of the table.
    """

    title: str
    text: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)


def card_sections(name: str, results: Mapping[str, Any]) -> list[Section]:
    """The card of one evaluated model, with the sections of Mitchell et al. 2018 (arXiv 1810.03993).

    Args:
        name: of the model.
        results: from ``ml.evaluation.evaluate.evaluate``.
    """
    row = results["models"][name]
    card = row["card"]
    return [
        Section("Model", [_kind(name)], _details(row)),
        Section("Intended use", [card["intended_use"]]),
        Section("Not for", _not_for(row)),
        Section("Data", [LICENCE], _data(row, results)),
        Section("Metrics", [METRICS], head=_HEAD, rows=list(_figures(name, results))),
        *_retrieval(row, results),
        Section("Limits", [*_own_limits(row, results), *card["limits"]]),
        Section("Training", (), _training(row)),
    ]


def as_markdown(name: str, sections: Sequence[Section]) -> str:
    """The card as a Markdown file."""
    lines = [f"# {name}"]
    for section in sections:
        lines += ["", f"## {section.title}", ""]
        lines += [f"- {text}" for text in section.text] if len(section.text) > 1 else section.text
        if section.facts:
            lines += ["", "| | |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in section.facts)]
        if section.head:
            lines += ["", f"| {' | '.join(section.head)} |", "|---" * len(section.head) + "|"]
            lines += [f"| {' | '.join(map(_cell, cells))} |" for cells in section.rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _kind(name: str) -> str:
    """What the module of a model says it is."""
    if name not in MODEL_SPECS:
        return name
    return (import_module(f"ml.models.{MODEL_SPECS[name].module}").__doc__ or name).strip().splitlines()[0]


def _details(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    card = row["card"]
    classes = ", ".join(f"{_spoken(task)} ({len(names)} classes)" for task, names in card["tasks"].items())
    return [
        ("Tasks", classes),
        ("Inputs", " and ".join(row["inputs"])),
        ("Version", row["version"]),
        (
            "Initial weights",
            row["weights_source"] if row["init"] == "pretrained" or row["retrieval"] else "random",
        ),
        ("Parameters", f"{row['parameters']:,}"),
        ("Temperature", _by_task({task: own["temperature"] for task, own in row["tasks"].items()})),
        ("Confident from", _by_task(card["thresholds"])),
        *([("Confident without caption from", _by_task(only))] if (only := card["thresholds_image_only"]) else []),
        ("Temperature and thresholds set on", card["calibrated_on"].replace("out-of-fold", "predictions out of fold")),
        *_ood_threshold(card["ood_threshold"], card["ood_distance"]),
        ("sha256 of the model", row["sha256"]),
        *((f"sha256 of {file['name']}", file["sha256"]) for file in card["files"]),
    ]


def _unofficial(run: dict[str, Any]) -> str:
    epochs = run["options"]["epochs"]
    return f", quick try of {epochs} epochs" if epochs else ", another recipe than the registered model's"


def _ood_threshold(threshold: float | None, distance: str) -> list[tuple[str, str]]:
    if threshold is None:
        return []
    words = "a cosine distance of {:.3f} to the nearest training image"
    if distance != "nearest":
        words = "a Mahalanobis distance of {:.2f} from the training images"
    return [("Out-of-distribution threshold", f"above {words.format(threshold)}")]


def _by_task(values: Mapping[str, float]) -> str:
    parts = ((task, "never" if value >= NEVER_CONFIDENT else f"{value:.3f}") for task, value in values.items())
    return ", ".join(f"{_spoken(task)} {value}" for task, value in parts)


def _spoken(task: str) -> str:
    return task.replace("_", " ")


def _not_for(row: Mapping[str, Any]) -> list[str]:
    if "image" in row["inputs"]:
        return list(NOT_FOR)
    return [*NOT_FOR, "Images: it reads the caption alone."]


def _data(row: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, split = row["card"]["data"], results["split"]
    learned = (f"{split}: {count:,} images of {data['cases'][split]} cases" for split, count in data["images"].items())
    preprocess = row["card"]["preprocess"]
    return [
        ("Learned from", f"{data['name']}; {'; '.join(learned)}"),
        ("sha256 of these records", data["snapshot"]),
        ("Scored on", f"{split['checked']}: {split['images']} images of {split['cases']} cases"),
        ("sha256 of the scored split", split["content_sha256"]),
        ("Dataset version", split["dataset_version"] or "unknown"),
        ("Preprocessing", "none: it takes no image" if preprocess is None else json.dumps(preprocess)),
    ]


_HEAD: Final = ("Task", "Measured on", "Images", "Accuracy", "Macro F1", "ECE")


def _figures(name: str, results: Mapping[str, Any]) -> Iterator[list[str]]:
    for task, own in results["models"][name]["tasks"].items():
        split = results["split"]["split"]
        yield [_spoken(task), split, str(own["scores"]["n"]), *(_figure(own["scores"], key) for key in _SHOWN)]
        sure = own["confident"]
        if sure["n"]:
            share = f"{split}, the {sure['coverage']:.0%} it is confident of"
            yield [_spoken(task), share, str(sure["n"]), _figure(sure, "accuracy"), "", ""]
        if own["dev"] and split != "dev":
            yield [_spoken(task), "dev", str(own["dev"]["n"]), *(_figure(own["dev"], key) for key in _SHOWN)]
        folds = results["cv"].get(name, {}).get(task)
        if folds:
            measured_on = f"{len(folds['folds'])} folds of all cases" + (
                "" if folds["run"]["official"] else _unofficial(folds["run"])
            )
            yield [_spoken(task), measured_on, str(folds["n"]), *(_figure(folds, key) for key in _SHOWN)]
        seeds = results["seeds"].get(name, {}).get(task)
        if seeds:
            measured_on = f"{split}, mean and SD of {len(seeds['seeds'])} seeds"
            measured_on += "" if seeds["run"]["official"] else _unofficial(seeds["run"])
            spread = (seeds["figures"][key] for key in _SHOWN)
            yield [_spoken(task), measured_on, str(seeds["n"]), *(f"{s['mean']:.3f} ± {s['sd']:.3f}" for s in spread)]


def _retrieval(row: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Section]:
    """How well captions find images, of a model that embeds both in one space."""
    if (figures := row["retrieval"]) is None:
        return
    split = results["split"]["split"]
    text = f"{figures['queries']} captions, {figures['images']} images of the {split} split. {RELEVANT}"
    cutoffs = [str(k) for k in CUTOFFS]
    rows = [
        [kind]
        + [
            f"{figures[kind]['recall_at'][k]:.3f} [{low:.2f}, {high:.2f}], random {figures[kind]['random_at'][k]:.3f}"
            for k in cutoffs
            for low, high in [figures[kind]["recall_at_95"][k]]
        ]
        for kind in KINDS
    ]
    yield Section("Retrieval", [text], head=["Relevant", *(f"R@{k}" for k in cutoffs)], rows=rows)


_SHOWN: Final = ("accuracy", "macro_f1", "ece")


def _figure(scores: Mapping[str, Any], key: str) -> str:
    span = scores.get(f"{key}_95")
    return f"{scores[key]:.3f}" + (f" [{span[0]:.2f}, {span[1]:.2f}]" if span else "")


def _own_limits(row: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    """What the figures say against this model."""
    for remark in row["remarks"]:
        yield remark[0].upper() + remark[1:] + "."
    for task, own in row["tasks"].items():
        task_results = results["tasks"][task]
        for limit in (
            *_unknown_classes(own, task_results["absent"]),
            *_weakest_group(own),
            *_needed_inputs(own, task_results),
        ):
            yield f"{_spoken(task).capitalize()}: {limit}."


def _unknown_classes(own: Mapping[str, Any], absent: Sequence[str]) -> Iterator[str]:
    missed = [f"{c['class']} ({c['support']})" for c in own["per_class"] if c["support"] and not c["recall"]]
    if missed:
        yield f"never right about {'; '.join(missed)} (images scored)"
    if absent:
        yield f"nothing is known about {'; '.join(absent)}, which do not occur in the scored split"


def _weakest_group(own: Mapping[str, Any]) -> Iterator[str]:
    groups = [
        (s["accuracy"], f"{attribute} {value}", s)
        for attribute, values in own["subgroups"].items()
        for value, s in values.items()
        if s["n"] >= _LEAST_OF_SUBGROUP
    ]
    if groups:
        accuracy, group, scores = min(groups, key=lambda task_results: (task_results[0], task_results[1]))
        yield (
            f"the weakest subgroup of {_LEAST_OF_SUBGROUP} or more images is {group}, "
            f"{accuracy:.3f} on {scores['n']} images of {scores['cases']} cases"
        )


def _needed_inputs(own: Mapping[str, Any], task_results: Mapping[str, Any]) -> Iterator[str]:
    if kinds := own["ablations"]:
        alone = kinds["image only"]["accuracy"]
        yield f"without a caption accuracy is {alone:.3f} instead of {own['scores']['accuracy']:.3f}"
    elif own["shortcuts"]:
        alone, always = own["shortcuts"]["text bands alone"]["accuracy"], task_results["majority"]["accuracy"]
        yield (f"from the bands with burned-in text alone accuracy is {alone:.3f}; the majority class has {always:.3f}")


def _training(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    card, env = row["card"], row["card"]["environment"]
    return [
        ("Trained", f"{row['trained_at'][:19].replace('T', ' ')} UTC, in {row['seconds']:.0f} s"),
        ("Seed", str(row["seed"])),
        ("Environment", f"Python {env['python']} on {env['platform']}, {env['device']}, {env['threads']} threads"),
        ("Packages", ", ".join(f"{name} {version}" for name, version in env["packages"].items())),
        ("Settings", json.dumps(card["settings"])),
    ]
