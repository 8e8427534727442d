"""Scores registered models on a split, with everything that shows how far the figures can be trusted.

This is the one place that looks at the labels of the test split.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pymongo.database import Database

from ml import labels
from ml.card import ModelCard, environment, now
from ml.context import Options, log_prior
from ml.device import DeviceName, pick_device
from ml.evaluation import probes, splits
from ml.evaluation.asking import Asked, Pictures, as_answers, move_to
from ml.evaluation.audit import disagreements
from ml.evaluation.folds import FOLDS, cross_validate
from ml.evaluation.quoted import quoted_for
from ml.evaluation.resampling import RESAMPLES
from ml.evaluation.scoring import Answers, calibration, compare, describe, measure
from ml.progress import Reporter, Run, silent
from ml.records import Record, load_records
from ml.registry import Registry, UnknownModelError
from ml.train import DEFAULTS, PLANS

Results = dict[str, Any]
MAJORITY: Final = "majority class"
_SPLITS: Final = ("train", "dev", "test")


def evaluate(
    database: Database[dict[str, Any]],
    images_dir: Path,
    models_dir: Path,
    names: Sequence[str],
    *,
    split: str = "test",
    device: DeviceName = "auto",
    register: bool = True,
    cv: bool = False,
    options: Options | None = None,
    reporter: Reporter = silent,
) -> Results:
    """Score models on a split.

    Args:
        database: the seeded database.
        images_dir: folder of the PNG files.
        models_dir: folder of the model files.
        names: of registered models and of tasks, or "all".
        split: test or dev.
        device: auto, cpu, cuda or mps.
        register: put the figures of the test split, and of the folds, on the models' cards.
        cv: also train every model anew on each of five folds of all cases; takes five trainings.
        options: of these trainings.
        reporter: told about progress.

    Returns:
        JSON values: ``split`` (what was scored), ``models`` (figures per model and task), ``tasks``
        (majority row, quoted rows, paired differences, label audit), ``leakage``, ``cv``,
        ``bootstrap``, ``environment``, ``created_at``. Thumbnails of the audit are data URIs.

    Raises:
        UnknownModelError: a model is not registered.
        ml.records.RecordsError: database or images are missing or damaged.
        ml.registry.RegistryError: model files are missing or damaged, or a card could not be written.
        ml.evaluation.splits.SplitError: these are not the test images of the published dataset.
    """
    registry = Registry(database, models_dir)
    where = pick_device(device)
    with Run("evaluate", (), reporter) as run:
        cards = chosen_cards(names, registry)
        run.update(0.0, "reading the records")
        by_split = {name: load_records(database, images_dir, (name,)) for name in _SPLITS}
        records = by_split[split]
        results: Results = {
            "created_at": now().isoformat(),
            "split": splits.identity(database, split, records),
            "bootstrap": {"resamples": RESAMPLES, "unit": "case", "level": 0.95},
            "environment": environment(str(where), torch.get_num_threads()).model_dump(),
        }
        run.update(0.02, "looking for images that are known from training")
        results["leakage"] = splits.leakage(by_split, split)
        suspects = results["leakage"]["suspect_cases"]
        answers: dict[str, dict[str, Answers]] = {MAJORITY: majority(by_split["train"], records)}
        results["models"] = {}
        pictures = Pictures()
        for index, card in enumerate(cards):
            run.update(0.15 + 0.75 * index / len(cards), f"asking {card.name}")
            asked = Asked.ask(move_to(registry.load(card.name), where), records, pictures)
            answers[card.name] = asked.answers()
            results["models"][card.name] = _model(card, asked, answers[card.name], pictures, suspects)
        run.update(0.9, "comparing")
        results["tasks"] = _tasks(cards, answers, records)
        results["cv"] = None
    if cv:
        results["cv"] = _cross_validate(cards, by_split, where, models_dir, reporter, options or Options())
    if register:
        _register(registry, cards, results)
    return results


def chosen_cards(names: Sequence[str], registry: Registry) -> list[ModelCard]:
    """The cards of the models to evaluate; a task stands for its registered models.

    Raises:
        UnknownModelError: a model is not registered, or none is; the message says how to train it.
    """
    registered = {card.name: card for card in registry.list()}
    if not registered:
        raise UnknownModelError("no model is registered yet; train the default ones with `medpix train --missing`")
    wanted: list[str] = []
    for name in registered if "all" in names else names:
        if name in registered:
            wanted.append(name)
        elif name in labels.TASKS and (found := [n for n, card in registered.items() if name in card.tasks]):
            wanted += found
        elif name in PLANS or name in DEFAULTS:
            raise UnknownModelError(
                f"{name} is not registered; train it with `medpix train {name}`. "
                f"Registered are: {', '.join(registered)}"
            )
        else:
            known = ", ".join([*DEFAULTS, *PLANS])
            raise UnknownModelError(f"{name!r} is neither a model nor a task; known are: {known}")
    return [registered[name] for name in dict.fromkeys(wanted)]


def majority(train: Sequence[Record], records: Sequence[Record]) -> dict[str, Answers]:
    """What answers the frequencies of the classes in training, and so always the same class."""
    rows = {
        task: np.tile(np.exp(log_prior(train, task)).astype(np.float32), (len(records), 1)) for task in labels.TASKS
    }
    return as_answers(rows, records)


def _model(
    card: ModelCard, asked: Asked, answers: Mapping[str, Answers], pictures: Pictures, suspects: Sequence[str]
) -> Results:
    before, ablated = asked.before_temperature(), probes.ablations(asked)
    shortcut = probes.shortcuts(asked, pictures)
    facts = card.model_dump(
        mode="json",
        include={"version", "init", "weights_source", "inputs", "parameters", "seconds", "seed", "preprocess_hash"},
    )
    return facts | {
        "sha256": card.sha256,
        "trained_at": card.created_at.isoformat(),
        "tasks": {
            task: {
                "scores": measure(found),
                "dev": card.metrics.get("dev", {}).get(task),
                "temperature": card.temperature[task],
                "calibration": calibration(before[task], found),
                **describe(found, tuple(card.tasks[task])),
                "subgroups": probes.subgroups(found, asked.records),
                "ablations": ablated.get(task, {}),
                "shortcuts": shortcut.get(task, {}),
                "without_suspect_cases": splits.without(found, suspects),
            }
            for task, found in answers.items()
        },
    }


def _tasks(
    cards: Sequence[ModelCard], answers: Mapping[str, Mapping[str, Answers]], records: Sequence[Record]
) -> Results:
    found: Results = {}
    for task in labels.TASKS:
        doing = [card for card in cards if task in card.tasks]
        if not doing:
            continue
        best = max(doing, key=lambda card: card.score(task) or 0.0)
        rows = [MAJORITY, *(card.name for card in doing)]
        found[task] = {
            "classes": list(labels.TASKS[task]),
            "majority": measure(answers[MAJORITY][task])
            | {"class": labels.TASKS[task][int(answers[MAJORITY][task].probabilities[0].argmax())]},
            "models": [card.name for card in doing],
            "quoted": quoted_for(task),
            "pairs": [
                {"first": first, "second": second} | compare(answers[first][task], answers[second][task])
                for first, second in permutations(rows, 2)
            ],
            "audit": {
                "model": best.name,
                "items": disagreements(answers[best.name][task], best.tasks[task], records),
            },
        }
    return found


def _cross_validate(
    cards: Sequence[ModelCard],
    by_split: Mapping[str, Sequence[Record]],
    device: torch.device,
    models_dir: Path,
    reporter: Reporter,
    options: Options,
) -> Results:
    records = [record for members in by_split.values() for record in members]
    # Checkpoints of other records or options must not be taken up.
    key = hashlib.sha256(f"{splits.names_hash(records)} {options}".encode()).hexdigest()[:12]
    found = cross_validate(
        [card.name for card in cards],
        records,
        device=device,
        scratch=models_dir / ".training" / f"cv-{key}",
        reporter=reporter,
        options=options,
    )
    return {"folds": FOLDS, "images": len(records), "seed": options.seed, "models": found}


def _register(registry: Registry, cards: Sequence[ModelCard], results: Results) -> None:
    for card in cards:
        if results["split"]["split"] == "test":
            figures = {task: found["scores"] for task, found in results["models"][card.name]["tasks"].items()}
            registry.set_metrics(card, "test", figures)
        if results["cv"] is not None:
            registry.set_metrics(card, "cv", results["cv"]["models"][card.name])
