"""Trains a model by name, from records in MongoDB to a registered card."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.core.progress import Progress
from app.data import schema
from ml.dataset.records import Record, groups, load_records, need_labels, targets
from ml.evaluation.metrics import scores
from ml.models.base import EMBEDDING, STAGES, Floats, Outputs, ServedModel, has_caption, log
from ml.models.model_specs import DEFAULTS, MODEL_SPECS
from ml.models.predict_records import captions_of, run_captions, run_images
from ml.registry.artifacts import exclusive_lock
from ml.registry.model_card import ModelCard, now
from ml.registry.reference_embeddings import Reference
from ml.registry.registry import Registry, UnknownModelError, is_complete, load_reference
from ml.training.calibration import TARGET_ACCURACY, choose_tau, decision_threshold, fit_temperature
from ml.training.context import Context, Options
from ml.training.device import DeviceName, pick_device, team
from ml.training.progress import STOPPED, DatabaseReporter, Reporter, Run, silent, to_all

# Share of the dev images within the out-of-distribution threshold.
OOD_QUANTILE: Final = 0.95


def usable_models(database: Database[dict[str, Any]], models_dir: Path) -> set[str]:
    """The names of the registered models whose files are there."""
    return {card.name for card in Registry(database, models_dir).cards() if is_complete(card, models_dir)}


def models_to_train(
    requested: Sequence[str], database: Database[dict[str, Any]], models_dir: Path, *, missing: Sequence[str] = ()
) -> list[str]:
    """The models to train for names of models and of tasks, each after those that it is built on.

    A task stands for its default models. What a model needs is trained too where it is not usable: it
    is not registered, or its files are gone.

    Args:
        requested: keys of ``MODEL_SPECS`` or ``DEFAULTS``; "all" for every model.
        database: the seeded database.
        models_dir: folder of the model files.
        missing: models to train where they are not usable.

    Raises:
        UnknownModelError: a name is neither a model nor a task.
    """
    usable = usable_models(database, models_dir)
    names: dict[str, None] = {}
    for name in MODEL_SPECS if "all" in requested else requested:
        if name not in MODEL_SPECS and name not in DEFAULTS:
            valid = ", ".join([*DEFAULTS, *MODEL_SPECS, "all"])
            raise UnknownModelError(f"{name!r} is neither a model nor a task; known are: {valid}")
        names |= dict.fromkeys(DEFAULTS.get(name, (name,)))
    names |= {name: None for name in missing if name not in usable}
    order: dict[str, None] = {}

    def add(name: str) -> None:
        for need in MODEL_SPECS[name].needs:
            if need in names or need not in usable:
                add(need)
        order[name] = None

    for name in names:
        add(name)
    return list(order)


def queue(names: Sequence[str], database: Database[dict[str, Any]]) -> None:
    """Note in ``Training_runs`` that models wait for their training."""
    for step, name in enumerate(names, start=1):
        waiting = Progress(
            name,
            MODEL_SPECS[name].tasks,
            "queued",
            message="waiting for its turn",
            step=step,
            steps=len(names),
            updated_at=now(),
        )
        database[schema.TRAINING_RUNS].replace_one({"_id": name}, waiting.to_document(), upsert=True)


@contextmanager
def queued(names: Sequence[str], database: Database[dict[str, Any]]) -> Iterator[None]:
    """Around the training of models: they are noted as waiting, and as failed where it ends before their turn."""
    queue(names, database)
    try:
        yield
    except BaseException as error:
        cause = STOPPED if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        ended = {"state": "failed", "updated_at": now(), "message": f"not started: {cause}"}
        with suppress(PyMongoError):
            database[schema.TRAINING_RUNS].update_many(
                {"_id": {"$in": list(names)}, "state": "queued"}, {"$set": ended}
            )
        raise


def train_model(
    name: str,
    *,
    database: Database[dict[str, Any]],
    images_dir: Path,
    models_dir: Path,
    device: DeviceName = "auto",
    reporter: Reporter = silent,
    options: Options | None = None,
    step: tuple[int, int] | None = None,
) -> ModelCard:
    """Train one model on the train split, calibrate it on dev, and register it.

    Progress goes to ``reporter`` and to the document of the model in ``Training_runs``. Started by
    ``torchrun``, all processes train together and the first one registers; who trains several models
    does so within one ``ml.training.device.team``.

    Args:
        name: a key of ``MODEL_SPECS``.
        database: the seeded database.
        images_dir: folder of the PNG files.
        models_dir: folder for model files and checkpoints.
        device: auto, cpu, cuda or mps.
        reporter: called with the progress.
        options: what the user chose; None for the defaults.
        step: position among the models that one command trains, and their number, for the progress.

    Returns:
        The registered card.

    Raises:
        UnknownModelError: no such model, or one that it needs is not registered.
        ml.dataset.records.RecordsError: database or images are missing or damaged.
        ml.registry.artifacts.BusyError: another process trains the model into the same folder.
        ml.registry.registry.RegistryError: the files could not be written.
        ml.training.pretrained.WeightsError: the pretrained weights asked for cannot be had.
    """
    if name not in MODEL_SPECS:
        raise UnknownModelError(f"unknown model {name!r}; known are: {', '.join(MODEL_SPECS)}")
    spec = MODEL_SPECS[name]
    torch_device = pick_device(device)
    registry = Registry(database, models_dir)
    checkpoint_dir = models_dir / ".training" / name
    with (
        team(torch_device) as processes,
        exclusive_lock(f"{name} is being trained", checkpoint_dir) if processes.is_main_process else nullcontext(),
    ):
        # Every process raises an error; the main one alone reports progress.
        report = to_all([reporter, DatabaseReporter(database)]) if processes.is_main_process else silent
        with Run(name, spec.tasks, report, step) as run:
            # Read now, needed at the end: a file that is missing must not show after hours.
            test_records = load_records(database, images_dir, ("test",)) if processes.is_main_process else []
            context = Context(
                train=load_records(database, images_dir, ("train",)),
                dev=load_records(database, images_dir, ("dev",)),
                registry=registry,
                device=torch_device,
                team=processes,
                run=run,
                options=options or Options(),
                checkpoint_dir=checkpoint_dir,
            )
            for records in (context.train, context.dev):
                need_labels(records, spec.tasks)
            with run.stage(0.0, 0.95):
                model = spec.train(context)
            if processes.is_main_process:
                with run.stage(0.95, 1.0):
                    _finish(model, context, registry, test_records)
            # The next model may build on this one: nobody goes on before it is registered.
            processes.wait()
    return registry.get(name)


def _finish(model: ServedModel, context: Context, registry: Registry, test_records: Sequence[Record]) -> None:
    """Calibrate and score on dev, embed the dataset, register, and drop the checkpoints."""
    context.run.update(0.2, "calibrating on dev")
    dev_outputs = calibrate(model, context)
    reference = None
    if dev_outputs is not None and EMBEDDING in dev_outputs:
        context.run.update(0.5, "embedding the dataset for similar-image search")
        reference = _reference(model, context, registry, test_records)
        distances = reference.distance_by(model.card.ood_distance)(dev_outputs)
        model.card.ood_threshold = float(np.quantile(distances, OOD_QUANTILE))
    model.card.parameters = model.count_parameters()
    model.card.history = list(context.run.history)
    model.card.seconds = round(context.run.seconds, 1)
    registry.register(model, reference)
    shutil.rmtree(context.checkpoint_dir, ignore_errors=True)


def calibrate(model: ServedModel, context: Context) -> Outputs | None:
    """Set adjustments, temperatures, thresholds and dev scores on the card of a new model.

    Returns:
        What the image half made of the dev images; None for a model without image.
    """
    card, dev = model.card, context.dev
    outputs = None
    if model.preprocess is not None:
        outputs = run_images(model, context.images(dev, model.preprocess))
    encoded = run_captions(model, captions_of(dev))
    if adjustments := card.settings.get("adjust"):
        raw = model.combine(outputs, encoded)
        for task, adjustment in adjustments.items():
            adjustment["tau"] = choose_tau(log(raw[task]), np.array(adjustment["log_prior"]), targets(dev, task))
    set_calibration(model, outputs, encoded, dev)
    score_on_dev(model, outputs, encoded, dev)
    return outputs


def set_calibration(
    model: ServedModel,
    outputs: Outputs | None,
    encoded: Floats | None,
    records: Sequence[Record],
    ood: NDArray[np.bool_] | None = None,
) -> None:
    """Set temperatures and thresholds on the card of a model, from outputs for images that it did not learn from.

    Args:
        model: combines the outputs.
        outputs: of the image half, for N records.
        encoded: of the caption half.
        records: N records.
        ood: which of them are out of distribution, and so never confident, (N,).
    """
    card = model.card
    every = np.ones(len(records), dtype=np.bool_)
    able = every if ood is None else ~ood
    # Without a caption a fused model gives the answer of its image half, which has a temperature of its own.
    has_text = has_caption(encoded, len(records)) if model.inputs == {"image", "caption"} else every
    has_text = has_text if has_text.any() else every
    # In place: the card of a model that is a part of another one shares these values with it.
    card.temperature.update(dict.fromkeys(card.tasks, 1.0))
    card.temperature.update(
        {
            task: fit_temperature(log(raw[has_text]), targets(records, task)[has_text])
            for task, raw in model.combine(outputs, encoded).items()
        }
    )

    def thresholds(probabilities: Mapping[str, Floats], rows: NDArray[np.bool_]) -> dict[str, float]:
        return {
            task: decision_threshold(
                own[rows], targets(records, task)[rows], groups(records)[rows], TARGET_ACCURACY[task]
            )
            for task, own in probabilities.items()
        }

    card.thresholds = thresholds(model.combine(outputs, encoded), able & has_text)
    if model.inputs == {"image", "caption"}:
        card.thresholds_image_only = thresholds(model.combine(outputs, None), able)


def score_on_dev(model: ServedModel, outputs: Outputs | None, encoded: Floats | None, dev: Sequence[Record]) -> None:
    """Put the scores on dev on the card of a model, from the outputs of its halves for the N records of dev."""
    for task, probabilities in model.combine(outputs, encoded).items():
        model.card.metrics.setdefault("dev", {})[task] = scores(probabilities, targets(dev, task), groups(dev))


def _reference(model: ServedModel, context: Context, registry: Registry, test_records: Sequence[Record]) -> Reference:
    """The embeddings of all images; those of a fusion are the ones that its image half was registered with."""
    records = [*context.train, *context.dev, *test_records]
    images = [record.image for record in records]
    versions = {card.name: card for card in registry.cards()}
    for part in model.parts:
        card = versions.get(part.card.name)
        if card is None or card.version != part.card.version or part.network is not model.network:
            continue
        registered = load_reference(card, registry.models_dir)
        if registered is not None and registered.images == tuple(images):
            return registered
    assert model.preprocess is not None
    outputs = run_images(model, context.images(records, model.preprocess))
    assert outputs is not None
    training = np.array([record.split == "train" for record in records], dtype=np.bool_)
    return Reference.build(images, training, outputs[EMBEDDING], outputs.get(STAGES))
