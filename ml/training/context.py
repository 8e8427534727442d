"""What every trainer is given: records, images, device, reporter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ml.dataset import labels
from ml.dataset.image_loading import load_images
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record, snapshot_hash
from ml.models.base import ServedModel
from ml.registry.model_card import DataSource, ModelCard, environment, new_version, now
from ml.training.checkpoint import CheckpointPath
from ml.training.device import Team
from ml.training.loop import Recipe
from ml.training.progress import Run


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can choose about a training run.

    Attributes:
        weights: auto, pretrained, scratch or the path of local pretrained weights.
        seed: of all random numbers.
        resume: continue from checkpoints of the same settings.
        epochs: instead of the recipe's; for quick tries.
        members: networks of the ensemble, instead of the recipe's.
    """

    weights: str = "auto"
    seed: int = 0
    resume: bool = True
    epochs: int | None = None
    members: int | None = None

    def epochs_or(self, default: int) -> int:
        """The epochs that the user chose, else those of a recipe."""
        return default if self.epochs is None else self.epochs

    def members_or(self, default: int) -> int:
        """The networks of an ensemble that the user chose, else those of its settings."""
        return default if self.members is None else self.members


class ModelSource(Protocol):
    """Where a trainer finds the models that it builds on, as ``ml.registry.registry.Registry``."""

    def load(self, name: str) -> ServedModel:
        """A model with its weights."""
        ...


@dataclass(slots=True)
class Context:
    """The context of one training run.

    Attributes:
        train: records to learn from.
        dev: records to choose and calibrate on.
        registry: the models registered so far, for models that build on others.
        device: where to train.
        team: the processes that share the run.
        run: reports the progress.
        options: what the user chose.
        checkpoint_dir: folder for checkpoints.
        image_cache: the images decoded so far, uint8 (channels, size, size), by hash of the preprocessing and name.
    """

    train: list[Record]
    dev: list[Record]
    registry: ModelSource
    device: torch.device
    team: Team
    run: Run
    options: Options
    checkpoint_dir: Path
    image_cache: dict[str, dict[str, NDArray[np.uint8]]] = field(default_factory=dict)

    def load(self, name: str) -> ServedModel:
        """A registered model that this one builds on, on the device of the run.

        Raises:
            ml.registry.UnknownModelError: it is not registered.
        """
        return self.registry.load(name).to(self.device)

    def recipe(self, recipe: Recipe, *, depthwise: bool = False) -> Recipe:
        """A recipe as this run carries it out: with the epochs that the user chose.

        Args:
            recipe: of the family.
            depthwise: whether the network has depthwise convolutions. A CPU trains them in float32: their gradient in
                bfloat16 takes it several times as long.
        """
        amp = recipe.amp and not (depthwise and self.device.type == "cpu")
        return replace(recipe, epochs=self.options.epochs_or(recipe.epochs), amp=amp)

    def images(self, records: Sequence[Record], preprocess: Preprocess) -> NDArray[np.uint8]:
        """The prepared images of records, decoded at most once per run.

        Returns:
            uint8 array (N, channels, size, size).

        Raises:
            ml.dataset.records.RecordsError: a file is missing, changed or not an image.
        """
        decoded = self.image_cache.setdefault(preprocess.hash, {})
        missing = [record for record in records if record.image not in decoded]
        if missing:
            loaded = load_images(missing, preprocess, on_progress=lambda done: self.run.update(done, "reading images"))
            decoded.update({record.image: pixels for record, pixels in zip(missing, loaded, strict=True)})
        return np.stack([decoded[record.image] for record in records])

    def checkpoint(self, part: str) -> CheckpointPath:
        """Where a part of the run keeps its checkpoint; what is there is removed where the run ignores checkpoints."""
        path = self.checkpoint_dir / f"{part}.safetensors"
        if not self.options.resume and self.team.is_main_process:
            path.unlink(missing_ok=True)
        self.team.wait()
        return CheckpointPath(path, self.run)

    def draft_card(
        self,
        name: str,
        family: str,
        *,
        tasks: Sequence[str],
        inputs: Sequence[Literal["image", "caption"]],
        preprocess: Preprocess | None,
        settings: Mapping[str, Any],
        init: Literal["pretrained", "scratch"] = "scratch",
        weights_source: str = "none: trained from random weights",
        ood_distance: Literal["mahalanobis", "stages"] = "mahalanobis",
    ) -> ModelCard:
        """A card that lacks what is only known after training: files, calibration and metrics."""
        created = now()
        return ModelCard(
            name=name,
            family=family,
            tasks={task: list(labels.TASKS[task]) for task in tasks},
            inputs=list(inputs),
            version=new_version(created),
            created_at=created,
            init=init,
            weights_source=weights_source,
            preprocess=None if preprocess is None else preprocess.to_json(),
            preprocess_hash=None if preprocess is None else preprocess.hash,
            files=[],
            temperature=dict.fromkeys(tasks, 1.0),
            thresholds=dict.fromkeys(tasks, 0.0),
            ood_threshold=None,
            ood_distance=ood_distance,
            metrics={},
            parameters=0,
            settings=dict(settings),
            seed=self.options.seed,
            seconds=0.0,
            data=self.data_source(),
            environment=environment(str(self.device), torch.get_num_threads(), self.run.precision),
        )

    def data_source(self) -> DataSource:
        """What this run learns from and chooses on."""
        splits = {"train": self.train, "dev": self.dev}
        return DataSource(
            snapshot=snapshot_hash([*self.train, *self.dev]),
            images={split: len(records) for split, records in splits.items()},
            cases={split: len({record.u_id for record in records}) for split, records in splits.items()},
        )


def log_prior(records: Sequence[Record], task: str) -> NDArray[np.float64]:
    """The log frequency of each class among records, with one added to every count, (classes,)."""
    counts = np.ones(len(labels.TASKS[task]))
    for record in records:
        index = labels.encode(task, record.label(task))
        if index != labels.IGNORED:
            counts[index] += 1
    return np.asarray(np.log(counts / counts.sum()), dtype=np.float64)


def logit_adjustment(records: Sequence[Record], tasks: Sequence[str]) -> dict[str, Any]:
    """The setting "adjust" of a model, for ``ml.models.base.adjust``; tau is then chosen on dev.

    Args:
        records: of the training.
        tasks: whose classes differ much in frequency.
    """
    return {task: {"tau": 0.0, "log_prior": log_prior(records, task).tolist()} for task in tasks}
