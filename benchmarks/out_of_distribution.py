"""How well rules tell images that are no CT or MR image from those of the dataset.

    python -m benchmarks.out_of_distribution --data ../shared/MedPix-2.0
    python -m benchmarks.out_of_distribution --home .medpix --model efficientnet

For each rule: the area under the ROC curve, dev images against foreign ones, and the share of the foreign images whose
modality is served as confident where the rule lets 95 % of the dev images pass. Rules are chosen on the kinds that are
marked "chosen on"; the figure is that of the others, whose images are of other sources, and the goal is said to be
reached or not, which the exit status tells too. Views of one source are alike: the number of sources says how much the
figures are worth. Spoiled images of the dataset are listed apart: they are CT or MR images, and an answer may well be
right.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from app.core.settings import Settings, load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.mongod import database_uri
from app.data.schema import DATABASE
from app.serving.input_heuristics import is_colourful, is_plausible
from benchmarks.foreign_images import foreign_images, spoiled_images
from ml.dataset.labels import MODALITY
from ml.dataset.records import Record, load_records, targets
from ml.models.base import EMBEDDING, STAGES, softmax
from ml.models.image_model import ImageModel
from ml.models.network import MultiTaskNetwork
from ml.registry.reference_embeddings import Reference, normalise
from ml.registry.registry import Registry

Floats = NDArray[np.float32]
Outputs = dict[str, Floats]
Rule = Callable[[Outputs], NDArray[np.floating]]

GOAL_AUROC: Final = 0.95
GOAL_CONFIDENT: Final = 0.03
PASSING: Final = 0.95
CHOSEN_ON: Final = frozenset({"ultrasound", "nuclear medicine", "photographs", "charts"})
SERVED: Final = "all stages, mean and standard deviation: Mahalanobis"
LAST_LAYER: Final = "last layer: Mahalanobis"
_BATCH: Final = 32
_MIRRORED: Final = "mirrored"
_LOGITS: Final = "logits"
_PLAUSIBLE: Final = "plausible"


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def encode(model: ImageModel, images: Sequence[Image.Image | Path]) -> Outputs:
    """What the rules look at, of N images: raw logits of both views, features, stages, and the input heuristics."""
    preprocess = model.preprocess
    assert preprocess is not None
    network = model.network.members[0]
    assert isinstance(network, MultiTaskNetwork)
    parts: list[Outputs] = []
    for start in range(0, len(images), _BATCH):
        some = [_open(each) if isinstance(each, Path) else each for each in images[start : start + _BATCH]]
        pixels = np.stack([preprocess.apply(image) for image in some])
        with torch.inference_mode():
            x = model.network.normalise(torch.from_numpy(pixels))
            plain, mirrored = network(x, stages=network.has_stages), network(x.flip(3))
        plausible = [is_plausible(p) and not is_colourful(i) for p, i in zip(pixels, some, strict=True)]
        parts.append(
            {
                _LOGITS: plain[MODALITY].numpy(),
                _MIRRORED: mirrored[MODALITY].numpy(),
                EMBEDDING: plain[EMBEDDING].numpy(),
                _PLAUSIBLE: np.array(plausible, dtype=np.float32),
            }
            | ({STAGES: plain[STAGES].numpy()} if STAGES in plain else {})
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def confidence(model: ImageModel, outputs: Outputs) -> NDArray[np.bool_]:
    """Which modalities reach the threshold of the card, whatever the out-of-distribution rule says."""
    mean = (softmax(outputs[_LOGITS]) + softmax(outputs[_MIRRORED])) / 2
    calibrated = softmax(np.log(np.maximum(mean, 1e-8)), model.card.temperature[MODALITY])
    return np.asarray(calibrated.max(axis=1) >= model.card.threshold(MODALITY, with_caption=False))


def make_rules(train: Outputs) -> dict[str, Rule]:
    """Rules that give high values to images unlike those of the training."""
    unit = normalise(train[EMBEDDING])

    def neighbour(count: int) -> Rule:
        return lambda outputs: -np.sort(normalise(outputs[EMBEDDING]) @ unit.T, axis=1)[:, -count]

    rules: dict[str, Rule] = {
        LAST_LAYER: _reference(train).distance_by("mahalanobis"),
        "last layer: nearest neighbour": neighbour(1),
        "last layer: tenth nearest neighbour": neighbour(10),
        "last layer: norm of the features": lambda outputs: -np.linalg.norm(outputs[EMBEDDING], axis=1),
        "energy of the modality": lambda outputs: -np.logaddexp(*outputs[_LOGITS].T),
        "confidence": lambda outputs: -softmax(outputs[_LOGITS]).max(axis=1),
        "disagreement with the mirror image": lambda outputs: np.abs(
            softmax(outputs[_LOGITS]) - softmax(outputs[_MIRRORED])
        ).sum(axis=1),
    }
    if STAGES in train:
        means = _reference(train | {STAGES: _means(train[STAGES])}).distance_by("stages")
        rules["all stages, mean: Mahalanobis"] = lambda outputs: means(outputs | {STAGES: _means(outputs[STAGES])})
        rules[SERVED] = _reference(train).distance_by("stages")
    return rules


# Channels of the stages of EfficientNet-Lite0, whose statistics are means, then standard deviations, stage by stage.
_CHANNELS: Final = (16, 24, 40, 80, 112, 192, 320)


def _means(stages: Floats) -> Floats:
    starts = 2 * np.cumsum((0, *_CHANNELS[:-1]))
    columns = [np.arange(start, start + count) for start, count in zip(starts, _CHANNELS, strict=True)]
    return stages[:, np.concatenate(columns)]


def _reference(train: Outputs) -> Reference:
    """As a model is registered with it: the distances of the service."""
    count = len(train[EMBEDDING])
    names = [str(number) for number in range(count)]
    return Reference.build(names, np.ones(count, dtype=np.bool_), train[EMBEDDING], train.get(STAGES))


def measure(
    rule: Rule, model: ImageModel, dev: Outputs, kinds: Mapping[str, Outputs], names: Sequence[str]
) -> tuple[float, float]:
    """AUROC of a rule for images of some kinds, and the share of them that it leaves confident."""
    dev_distances = rule(dev)
    limit = np.quantile(dev_distances, PASSING)
    # Colour and white paper are seen before the network, under every rule.
    distances = np.concatenate([np.where(kinds[name][_PLAUSIBLE] > 0, rule(kinds[name]), np.inf) for name in names])
    sure = np.concatenate([confidence(model, kinds[name]) for name in names])
    finite = np.where(
        np.isinf(distances),
        max(dev_distances.max(), distances[np.isfinite(distances)].max(initial=0.0)) + 1.0,
        distances,
    )
    is_foreign = np.concatenate([np.zeros(len(dev_distances)), np.ones(len(distances))])
    return float(roc_auc_score(is_foreign, np.concatenate([dev_distances, finite]))), float(
        (sure & (distances <= limit)).mean()
    )


def report(
    model: ImageModel, train: Outputs, dev: Outputs, kinds: Mapping[str, Outputs], sources: Mapping[str, int]
) -> bool:
    """Print all figures.

    Args:
        model: whose outputs these are.
        train: outputs for the training images.
        dev: outputs for the dev images.
        kinds: outputs for foreign and spoiled images.
        sources: how many sources the images of each foreign kind have.

    Returns:
        Whether the served rule reaches the goals on the kinds that it was not chosen on.
    """
    chosen_on, held_out = (
        [kind for kind in sources if (kind in CHOSEN_ON) == is_chosen_on] for is_chosen_on in (True, False)
    )
    rules = make_rules(train)
    print(f"{'rule':<54} {'chosen on':>15} {'held out':>15} {'all foreign':>15}   AUROC, share confident")
    on_chosen: dict[str, float] = {}
    for name, rule in rules.items():
        cells = [measure(rule, model, dev, kinds, names) for names in (chosen_on, held_out, list(sources))]
        on_chosen[name] = cells[0][0]
        print(f"{name:<54} " + " ".join(f"{auroc:>7.3f} {share:>7.1%}" for auroc, share in cells))
    served = SERVED if SERVED in rules else LAST_LAYER
    best = max(on_chosen, key=on_chosen.__getitem__)
    print(f"\nServed: {served}. Best AUROC on the kinds that rules are chosen on: {best}.")
    print("By kind, with the served rule:")
    for kind, outputs in kinds.items():
        auroc, share = measure(rules[served], model, dev, kinds, [kind])
        mark = "spoiled" if kind not in sources else "chosen on" if kind in CHOSEN_ON else "held out"
        count = f"{len(outputs[EMBEDDING]):>4} views of {sources.get(kind, len(outputs[EMBEDDING])):>3} sources"
        print(f"{kind:<24} {mark:<10} {count} {auroc:>7.3f} {share:>7.1%}")
    auroc, share = measure(rules[served], model, dev, kinds, held_out)
    reached = auroc >= GOAL_AUROC and share <= GOAL_CONFIDENT
    views = sum(len(kinds[kind][EMBEDDING]) for kind in held_out)
    print(
        f"\nHeld-out kinds, {views} views of {sum(sources[kind] for kind in held_out)} sources: "
        f"AUROC {auroc:.3f} (goal {GOAL_AUROC}), {share:.1%} confident (goal {GOAL_CONFIDENT:.0%}): "
        + ("reached" if reached else "missed")
    )
    return reached


def right_on_spoiled(dev: Sequence[Record], spoiled: Mapping[str, Outputs]) -> None:
    """Print how often the modality is right about spoiled images of the dataset."""
    classes = targets(dev, MODALITY)
    for kind, outputs in spoiled.items():
        print(f"{kind:<24} modality right {float((outputs[_LOGITS].argmax(axis=1) == classes).mean()):.3f}")


def run(settings: Settings, name: str) -> bool:
    """Measure a registered model."""
    folder = find_dataset(settings.dataset_dir) / IMAGE_FOLDER
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        database = client.get_default_database(DATABASE)
        model = Registry(database, settings.model_files_dir).load(name)
        records = {split: load_records(database, folder, (split,)) for split in ("train", "dev")}
    assert isinstance(model, ImageModel)
    train = encode(model, [record.path for record in records["train"]])
    images = [_open(record.path) for record in records["dev"]]
    dev = encode(model, images)
    views = foreign_images(settings)
    foreign = {kind: encode(model, [view.image for view in own]) for kind, own in views.items()}
    sources = {kind: len({view.source for view in own}) for kind, own in views.items()}
    spoiled = {kind: encode(model, edited) for kind, edited in spoiled_images(images).items()}
    reached = report(model, train, dev, foreign | spoiled, sources)
    right_on_spoiled(records["dev"], spoiled)
    return reached


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of MedPix 2.0; default: MEDPIX_DATA_DIR")
    parser.add_argument("--home", type=Path, help="folder of database and models; default: MEDPIX_HOME")
    parser.add_argument("--model", default="efficientnet", help="a registered image model")
    arguments = parser.parse_args()
    overrides = {name: value for name, value in (("data_dir", arguments.data), ("home", arguments.home)) if value}
    sys.exit(0 if run(load_settings(**overrides), arguments.model) else 1)


if __name__ == "__main__":
    main()
