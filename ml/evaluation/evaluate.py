"""Scores registered models on a split, with everything that shows how far the figures can be trusted.

This is the one place that looks at the labels of the test split.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import torch
from pymongo.database import Database

from app.data import schema
from ml.dataset import labels
from ml.dataset.records import Record, load_records
from ml.evaluation import splits
from ml.evaluation.bootstrap import RESAMPLES
from ml.evaluation.label_errors import disagreements
from ml.evaluation.leaderboard import majority, model_row, presence, untrained
from ml.evaluation.metrics import NoLabelsError
from ml.evaluation.model_outputs import ImageCache, ModelOutputs
from ml.evaluation.published_baselines import baselines_for
from ml.evaluation.retrain import Retrainer, Scratch
from ml.evaluation.scoring import LabelledPredictions, compare, measure
from ml.models.model_specs import DEFAULTS, MODEL_SPECS
from ml.registry.model_card import ModelCard, environment, now
from ml.registry.registry import Registry, UnknownModelError, load_reference
from ml.training.context import Options
from ml.training.device import DeviceName, pick_device
from ml.training.progress import Reporter, Run, silent

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
    seeds: int = 0,
    options: Options | None = None,
    scratch: Scratch | None = None,
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
        register: put the figures of the test split, of the folds and of the seeds on the models' cards.
        cv: also retrain every model on each of five folds of all cases; takes five trainings.
        seeds: also retrain every model with so many seeds, counted from that of the options.
        options: of these trainings; ``weights`` "auto" is what the registered model began from.
        scratch: keeps the checkpoints of these trainings until the caller clears it.
        reporter: called with the progress.

    Returns:
        JSON values: ``split`` (what was scored), ``models`` (figures per model and task), ``tasks``
        (majority row, models that are not trained, quoted rows, paired differences, label audit),
        ``leakage``, ``cv`` and ``seeds`` (of now, or as they stand on the cards), ``bootstrap``,
        ``environment``, ``code``, ``created_at``. Thumbnails of the audit are data URIs.

    Raises:
        UnknownModelError: a model is not registered, or is to be retrained and has no recipe.
        ml.dataset.records.RecordsError: database or images are missing or damaged.
        ml.registry.registry.RegistryError: model files are missing or damaged, or a card could not be written.
        ml.evaluation.metrics.NoLabelsError: no image of the split has a label for a task of the models.
        ml.evaluation.splits.SplitError: this is not the test split of the published dataset.
        ml.evaluation.folds.FoldError: there are too few cases for folds.
        OSError: a checkpoint could not be written.
    """
    registry = Registry(database, models_dir)
    torch_device = pick_device(device)
    with Run(schema.EVALUATION_RUN, (), reporter) as run:
        cards = chosen_cards(names, registry)
        # All at once: a damaged file must not show after the other models were scored.
        models = [(card, registry.load(card.name)) for card in cards]
        run.update(0.0, "reading the records")
        by_split = {name: load_records(database, images_dir, (name,)) for name in _SPLITS}
        records = by_split[split]
        _check_labels(cards, records, split)
        results: Results = {
            "created_at": now().isoformat(),
            "split": splits.identity(database, split, records),
            "bootstrap": {"resamples": RESAMPLES, "unit": "case", "level": 0.95},
            "environment": environment(str(torch_device), torch.get_num_threads()).model_dump(),
            "code": code_identity(),
        }
        run.update(0.02, "looking for images that are known from training")
        results["leakage"] = splits.leakage(by_split, split)
        suspects = results["leakage"]["suspect_cases"]
        predictions: dict[str, dict[str, LabelledPredictions]] = {MAJORITY: majority(by_split["train"], records)}
        results["models"] = {}
        image_cache = ImageCache()
        for index, (card, model) in enumerate(models):
            with run.stage(0.15 + 0.75 * index / len(cards), 0.15 + 0.75 * (index + 1) / len(cards)):
                run.update(0.0, f"predicting with {card.name}")
                outputs = ModelOutputs.compute(model.to(torch_device), records, image_cache)
                predictions[card.name] = outputs.predictions()
                results["models"][card.name] = model_row(
                    card,
                    outputs,
                    predictions[card.name],
                    image_cache,
                    suspects,
                    load_reference(card, models_dir),
                    run.update,
                )
        run.update(0.9, "comparing")
        registered = {card.name: card for card in registry.cards()}
        results["tasks"] = _tasks(cards, predictions, records, registered, exact=results["split"]["exact"])
        if register and split == "test":
            for card in cards:
                own = results["models"][card.name]["tasks"]
                registry.set_metrics(card, "test", {task: row["scores"] for task, row in own.items()})
                if (figures := results["models"][card.name]["retrieval"]) is not None:
                    registry.set_retrieval(card, "test", figures)
    retrainer = Retrainer(
        by_split, registered, torch_device, scratch or Scratch(models_dir / ".training"), reporter, options or Options()
    )
    chosen = [card.name for card in cards]
    results["cv"] = retrainer.on_cards(chosen, "cv") | (retrainer.folds(chosen) if cv else {})
    results["seeds"] = retrainer.on_cards(chosen, "seeds") if split == "test" else {}
    if register and cv:
        _put_on_cards(registry, registered, "cv", results["cv"])
    if seeds:
        results["seeds"] |= retrainer.seeds(chosen, split, seeds)
        if register and split == "test":
            _put_on_cards(registry, registered, "seeds", results["seeds"])
    return results


def _put_on_cards(registry: Registry, registered: Mapping[str, ModelCard], kind: str, figures: Results) -> None:
    """Figures of quick tries, or of another recipe than the registered model's, are left out."""
    for name, tasks in figures.items():
        official = {task: row for task, row in tasks.items() if row["run"]["official"]}
        if official and name in registered:
            registry.set_metrics(registered[name], kind, official)


def code_identity() -> dict[str, str]:
    """The version of this software, and a sha256 over the sources of the training package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return {"version": version("medpix-service"), "sha256": digest.hexdigest()}


def covers(results: Mapping[str, Any], cards: Sequence[ModelCard], dataset_version: str | None) -> bool:
    """Whether an evaluation is of these versions of the models, on the test split of these data, by this code."""
    try:
        return bool(
            results["split"]["split"] == "test"
            and results["split"]["dataset_version"] == dataset_version
            and results["code"] == code_identity()
            and {name: row["version"] for name, row in results["models"].items()} == {c.name: c.version for c in cards}
        )
    except (KeyError, TypeError):
        return False  # of another version of this software


def chosen_cards(names: Sequence[str], registry: Registry) -> list[ModelCard]:
    """The cards of the models to evaluate; a task stands for its registered models.

    Raises:
        UnknownModelError: a model is not registered, or none is; the message says how to train it.
    """
    registered = {card.name: card for card in registry.cards()}
    if not registered:
        raise UnknownModelError("no model is registered yet; train the default ones with `medpix train --missing`")
    selected: list[str] = []
    for name in registered if "all" in names else names:
        if name in registered:
            selected.append(name)
        elif name in labels.TASKS and (named := [n for n, card in registered.items() if name in card.tasks]):
            selected += named
        elif name in MODEL_SPECS or name in DEFAULTS:
            raise UnknownModelError(
                f"{name} is not registered; train it with `medpix train {name}`. "
                f"Registered are: {', '.join(registered)}"
            )
        else:
            valid = ", ".join([*DEFAULTS, *MODEL_SPECS])
            raise UnknownModelError(f"{name!r} is neither a model nor a task; known are: {valid}")
    return [registered[name] for name in dict.fromkeys(selected)]


def _check_labels(cards: Sequence[ModelCard], records: Sequence[Record], split: str) -> None:
    for card in cards:
        for task in card.tasks:
            if not presence(records, task)[0]:
                raise NoLabelsError(
                    f"no image of the split {split!r} has a label for {task}, so {card.name} cannot be scored on it; "
                    "name models of another task, or another split"
                )


def _tasks(
    cards: Sequence[ModelCard],
    predictions: Mapping[str, Mapping[str, LabelledPredictions]],
    records: Sequence[Record],
    registered: Mapping[str, ModelCard],
    *,
    exact: bool,
) -> Results:
    by_task: Results = {}
    for task in labels.TASKS:
        doing = [card for card in cards if task in card.tasks]
        if not doing:
            continue
        # As the service selects; caption models alone are never served.
        best = next(iter(Registry.ranked(task, doing)), max(doing, key=lambda card: card.score(task) or 0.0))
        rows = [MAJORITY, *(card.name for card in doing)]
        present, absent = presence(records, task)
        by_task[task] = {
            "classes": list(labels.TASKS[task]),
            "present": present,
            "absent": absent,
            "majority": measure(predictions[MAJORITY][task])
            | {"class": labels.TASKS[task][int(predictions[MAJORITY][task].probabilities[0].argmax())]},
            "models": [card.name for card in doing],
            "best_on_dev": best.name,
            "untrained": untrained(task, registered),
            # They were measured on the published test images, and say nothing beside others.
            "quoted": baselines_for(task) if exact else [],
            "pairs": [
                {"first": first, "second": second} | compare(predictions[first][task], predictions[second][task])
                for first, second in permutations(rows, 2)
            ],
            "audit": {"model": best.name} | disagreements(predictions[best.name][task], best.tasks[task], records),
        }
    return by_task
