"""Trains a model by name, from records in MongoDB to a registered card."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from pymongo.database import Database

from app.data import schema
from ml import labels
from ml.calibrate import TARGET_ACCURACY, decision_threshold, fit_temperature
from ml.card import ModelCard, now
from ml.context import Context, Options
from ml.device import DeviceName, pick_device, team
from ml.metrics import scores
from ml.models.base import EMBEDDING, ServedModel, log
from ml.predict import captions_of, run_captions, run_images
from ml.progress import DatabaseReporter, Reporter, Run, silent, to_all
from ml.records import Record, groups, load_records, targets
from ml.reference import Reference
from ml.registry import Registry, UnknownModelError, is_complete


class Plan(NamedTuple):
    """How a model is trained.

    Attributes:
        module: the module of ``ml.models`` whose ``function`` trains it.
        function: takes a ``Context``, returns a ``ServedModel``.
        tasks: what it predicts.
        needs: models that must be registered first.
    """

    module: str
    function: str
    tasks: tuple[str, ...]
    needs: tuple[str, ...] = ()


_BOTH_LOCATIONS: Final = (labels.LOCATION, labels.LOCATION_CATEGORY)
PLANS: Final[Mapping[str, Plan]] = MappingProxyType(
    {
        "efficientnet": Plan("efficientnet", "train", tuple(labels.TASKS)),
        "caption-location": Plan("caption", "train", _BOTH_LOCATIONS),
        "fused-efficientnet": Plan(
            "fusion", "train_efficientnet", _BOTH_LOCATIONS, ("efficientnet", "caption-location")
        ),
        "compact": Plan("compact", "train", tuple(labels.TASKS)),
        "fused-location": Plan("fusion", "train", _BOTH_LOCATIONS, ("compact", "caption-location")),
        "knn-texture": Plan("texture_knn", "train_texture", (labels.MODALITY,)),
        "knn-colour": Plan("texture_knn", "train_colour", (labels.MODALITY,)),
        "knn-texture-colour": Plan("texture_knn", "train_both", (labels.MODALITY,)),
        "fused-modality": Plan("texture_svm", "train", (labels.MODALITY,), ("compact",)),
        "resnet50-modality": Plan("resnet", "train_modality", (labels.MODALITY,)),
        "resnet50-location": Plan("resnet", "train_location", (labels.LOCATION,)),
        "clip-location": Plan("clip_train", "train", _BOTH_LOCATIONS),
    }
)
# What `medpix train modality` and `medpix train location` train, in this order.
DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"modality": ("efficientnet",), "location": ("caption-location", "fused-efficientnet")}
)
_OOD_QUANTILE: Final = 0.99


def models_to_train(wanted: Sequence[str], database: Database[dict[str, Any]], models_dir: Path) -> list[str]:
    """The models to train for names of models and of tasks, in an order that respects their needs.

    A task stands for its default models. What a model needs is trained first where it is neither
    registered nor named.

    Args:
        wanted: keys of ``PLANS`` or ``DEFAULTS``; "all" for every model.
        database: the seeded database.
        models_dir: folder of the model files.

    Raises:
        UnknownModelError: a name is neither a model nor a task.
    """
    registered = {card.name for card in Registry(database, models_dir).list()}
    names: list[str] = []
    for name in PLANS if "all" in wanted else wanted:
        if name not in PLANS and name not in DEFAULTS:
            known = ", ".join([*DEFAULTS, *PLANS, "all"])
            raise UnknownModelError(f"{name!r} is neither a model nor a task; known are: {known}")
        for model in DEFAULTS.get(name, (name,)):
            names += [need for need in PLANS[model].needs if need not in registered]
            names.append(model)
    return list(dict.fromkeys(names))


def missing_defaults(database: Database[dict[str, Any]], models_dir: Path) -> list[str]:
    """The default models of all tasks that are not registered, or whose files are gone."""
    usable = {card.name for card in Registry(database, models_dir).list() if is_complete(card, models_dir)}
    names = dict.fromkeys(name for defaults in DEFAULTS.values() for name in defaults)
    return [name for name in names if name not in usable]


def queue(names: Sequence[str], database: Database[dict[str, Any]]) -> None:
    """Note in ``Training_runs`` that models wait for their training."""
    for name in names:
        document = {
            "tasks": list(PLANS[name].tasks),
            "state": "queued",
            "fraction": 0.0,
            "epoch": None,
            "epochs": None,
            "eta_s": None,
            "started_at": None,
            "updated_at": now(),
            "message": "waiting for its turn",
            "pid": None,
        }
        database[schema.TRAINING_RUNS].replace_one({"_id": name}, document, upsert=True)


def train_model(
    name: str,
    *,
    database: Database[dict[str, Any]],
    images_dir: Path,
    models_dir: Path,
    weights: str = "auto",
    device: DeviceName = "auto",
    seed: int = 0,
    resume: bool = True,
    reporter: Reporter = silent,
    options: Options | None = None,
) -> ModelCard:
    """Train one model on the train split, calibrate it on dev, and register it.

    Progress goes to ``reporter`` and to the document of the model in ``Training_runs``. Started by
    ``torchrun``, all processes train together and the first one registers.

    Args:
        name: a key of ``PLANS``.
        database: the seeded database.
        images_dir: folder of the PNG files.
        models_dir: folder for model files and checkpoints.
        weights: auto, pretrained, scratch or the path of local pretrained weights.
        device: auto, cpu, cuda or mps.
        seed: of everything random.
        resume: continue a run that was killed, where its settings were the same.
        reporter: told about progress.
        options: further choices; weights, seed and resume above win over its own.

    Returns:
        The registered card.

    Raises:
        UnknownModelError: no such model, or one that it needs is not registered.
        ml.records.RecordsError: database or images are missing or damaged.
        ml.registry.RegistryError: the files could not be written.
        ml.weights.WeightsError: the pretrained weights asked for cannot be had.
    """
    if name not in PLANS:
        raise UnknownModelError(f"unknown model {name!r}; known are: {', '.join(PLANS)}")
    plan = PLANS[name]
    where = pick_device(device)
    base = options or Options()
    chosen = Options(weights, seed, resume, base.epochs, base.members, base.thorough)
    registry = Registry(database, models_dir)
    with team(where) as workers:
        # Every process hears of an error; one alone tells the world about progress.
        told = to_all([reporter, DatabaseReporter(database)]) if workers.leads else silent
        with Run(name, plan.tasks, told) as run:
            context = Context(
                train=load_records(database, images_dir, ("train",)),
                dev=load_records(database, images_dir, ("dev",)),
                registry=registry,
                device=where,
                team=workers,
                run=run,
                options=chosen,
                scratch=models_dir / ".training" / name,
            )
            with run.stage(0.0, 0.95):
                model = trainer(name)(context)
            others = load_records(database, images_dir, ("test",)) if workers.leads else []
            with run.stage(0.95, 1.0):
                return _finish(model, context, registry, others)


def trainer(name: str) -> Callable[[Context], ServedModel]:
    """The function that trains a model of ``PLANS``; what it returns is not calibrated."""
    plan = PLANS[name]
    function: Callable[[Context], ServedModel] = getattr(import_module(f"ml.models.{plan.module}"), plan.function)
    return function


def _finish(model: ServedModel, context: Context, registry: Registry, others: Sequence[Record]) -> ModelCard:
    """Calibrate and score on dev, embed the dataset, register, and drop the checkpoints."""
    if not context.team.leads:
        return model.card
    context.run.update(0.2, "calibrating on dev")
    dev_outputs = calibrate(model, context)
    reference = None
    if dev_outputs is not None and EMBEDDING in dev_outputs:
        context.run.update(0.5, "embedding the dataset for similar-image search")
        reference = _reference(model, context, others)
        distances = reference.distance(dev_outputs[EMBEDDING])
        model.card.ood_threshold = float(np.quantile(distances, _OOD_QUANTILE))
    model.card.parameters = model.count_parameters()
    model.card.history = list(context.run.history)
    model.card.seconds = round(context.run.seconds, 1)
    card = registry.register(model, reference)
    for path in context.scratch.glob("*.safetensors"):
        path.unlink(missing_ok=True)
    return card


def calibrate(model: ServedModel, context: Context) -> Mapping[str, np.ndarray[Any, Any]] | None:
    """Set temperatures, thresholds and dev scores on the card of a new model.

    Returns:
        What the image half made of the dev images; None for a model without image.
    """
    card, dev = model.card, context.dev
    outputs = None
    if model.preprocess is not None:
        outputs = run_images(model, context.images(dev, model.preprocess))
    encoded = run_captions(model, captions_of(dev))
    raw = model.combine(outputs, encoded)
    card.temperature = {task: fit_temperature(log(raw[task]), targets(dev, task)) for task in raw}
    for task, probabilities in model.combine(outputs, encoded).items():
        wanted = targets(dev, task)
        card.thresholds[task] = decision_threshold(probabilities, wanted, TARGET_ACCURACY[task])
        card.metrics.setdefault("dev", {})[task] = scores(probabilities, wanted, groups(dev))
    return outputs


def _reference(model: ServedModel, context: Context, others: Sequence[Record]) -> Reference:
    records = [*context.train, *context.dev, *others]
    assert model.preprocess is not None
    outputs = run_images(model, context.images(records, model.preprocess))
    assert outputs is not None
    training = np.array([record.split == "train" for record in records], dtype=np.bool_)
    return Reference.build([record.image for record in records], training, outputs[EMBEDDING])
