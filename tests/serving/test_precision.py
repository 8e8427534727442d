import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pymongo.database import Database
from torch import nn

from app.core.settings import Settings, load_settings
from app.data.seed import seed
from app.serving import precision as precision_module
from app.serving.backends.base import Precision
from app.serving.backends.devices import lower_precisions
from app.serving.backends.torch import TorchBackend
from app.serving.precision import MAX_SHIFT, compare, select_backend
from ml.dataset.image_loading import load_images
from ml.dataset.records import Record, RecordsError, load_records
from ml.models.base import ServedModel
from ml.registry.registry import Registry
from tests.conftest import database_address
from tests.service import is_ok, running_service, wait_for

Document = dict[str, Any]

needs_bf16 = pytest.mark.skipif(not lower_precisions("cpu"), reason="this CPU does not compute in bf16")


@pytest.fixture
def model(ml_database: Database[Document], models_dir: Path) -> ServedModel:
    return Registry(ml_database, models_dir).load("compact")


@pytest.fixture
def dev(ml_database: Database[Document], generated_dataset: Path) -> list[Record]:
    return load_records(ml_database, generated_dataset / "images", ("dev",))


@pytest.fixture
def auto(tmp_path: Path) -> Iterator[Settings]:
    threads = torch.get_num_threads()
    yield load_settings(home=tmp_path / "home", device="cpu", precision="auto")
    torch.set_num_threads(threads)


def _steepen(model: ServedModel) -> None:
    """Make every answer hang on the last digits of the logits."""
    for name, parameter in model.network.named_parameters() if model.network else ():
        if "heads" in name:
            parameter.data.mul_(3000.0)


@needs_bf16
def test_a_model_that_answers_alike_computes_in_bf16(model: ServedModel, dev: list[Record], auto: Settings) -> None:
    backend, choice = select_backend(model, auto, "weights", lambda: dev)
    assert (backend.precision, choice.precision) == ("bf16", "bf16")
    assert f"On {len(dev)} dev images bf16 changes no label" in choice.reason


@needs_bf16
def test_a_model_that_fails_the_comparison_is_served_in_fp32(
    model: ServedModel,
    database: Database[Document],
    generated_dataset: Path,
    mongo_server: str,
    auto: Settings,
) -> None:
    _steepen(model)
    seed(database, generated_dataset)
    Registry(database, auto.model_files_dir).register(model)
    served = {"mongo_uri": database_address(mongo_server, database.name), "data_dir": generated_dataset}
    with running_service(auto.model_copy(update=served)) as client:
        wait_for(client, "/health/ready", is_ok)
        backend = client.get("/models/compact").json()["backend"]
    assert (backend["name"], backend["precision"]) == ("openvino", "fp32")
    assert "moves a probability by" in backend["precision_reason"]


@needs_bf16
def test_the_comparison_is_kept(model: ServedModel, dev: list[Record], auto: Settings) -> None:
    select_backend(model, auto, "weights", lambda: dev)
    [kept] = (auto.home / "cache" / "precision").iterdir()
    kept.write_text('{"images": 5, "changed": 2, "shift": 0.5}')
    backend, choice = select_backend(model, auto, "weights", lambda: dev)
    assert backend.precision == "fp32"
    assert "bf16 changes 2 labels" in choice.reason
    select_backend(model, auto, "weights", lambda: dev[:-1])
    assert len(list((auto.home / "cache" / "precision").iterdir())) == 2
    kept.write_text("{cut")
    assert select_backend(model, auto, "weights", lambda: dev)[0].precision == "bf16"


@needs_bf16
def test_without_a_dev_split_it_is_fp32(model: ServedModel, auto: Settings) -> None:
    def unreadable() -> list[Record]:
        raise RecordsError("the database has no dev images")

    for source, words in ((None, "there is no dev split"), (unreadable, "the database has no dev images")):
        backend, choice = select_backend(model, auto, "weights", source)
        assert backend.precision == "fp32"
        assert words in choice.reason


def test_fp32_can_be_asked_for(model: ServedModel, dev: list[Record], auto: Settings) -> None:
    backend, choice = select_backend(model, auto.model_copy(update={"precision": "fp32"}), "weights", lambda: dev)
    assert (backend.precision, choice.reason) == ("fp32", "MEDPIX_PRECISION=fp32.")


class _Rounding:
    """A backend on CUDA, whose outputs are as far off as its precision."""

    name, device = "torch", "cuda"

    def __init__(self, network: nn.Module, precision: Precision, errors: Mapping[Precision, float]) -> None:
        self._plain, self.precision, self._error = TorchBackend(network, "cpu"), precision, errors.get(precision, 0.0)

    def run(self, pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        outputs = self._plain.run(pixels)
        tilt = {name: np.linspace(0.0, self._error, value.shape[1]) for name, value in outputs.items()}
        return {name: (value + tilt[name]).astype(np.float32) for name, value in outputs.items()}


@pytest.mark.parametrize(
    ("errors", "expected"),
    [({}, "bf16"), ({"bf16": 20.0}, "tf32"), ({"bf16": 20.0, "tf32": 20.0}, "fp32")],
)
def test_tf32_is_the_step_between_bf16_and_fp32(
    errors: dict[Precision, float],
    expected: Precision,
    model: ServedModel,
    dev: list[Record],
    auto: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(owner: ServedModel, *_: object) -> _Rounding:
        precision = cast("Precision", _[3]) if len(_) > 3 else "fp32"
        assert owner.network is not None
        return _Rounding(owner.network, precision, errors)

    monkeypatch.setattr(precision_module, "make_backend", make)
    monkeypatch.setattr(precision_module, "lower_precisions", lambda _: ("bf16", "tf32"))
    monkeypatch.setattr(precision_module, "device_name", lambda _: "a GPU")
    backend, choice = select_backend(model, auto, "weights", lambda: dev)
    assert (backend.precision, choice.precision) == (expected, expected)
    tried = ["bf16", "tf32"][: len(errors) + 1]
    assert [name for name in ("bf16", "tf32") if f"dev images {name} changes" in choice.reason] == tried


def _on_a_gpu(monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    monkeypatch.setattr(precision_module, "make_backend", make)
    monkeypatch.setattr(precision_module, "lower_precisions", lambda _: ("bf16",))
    monkeypatch.setattr(precision_module, "device_name", lambda _: "a GPU")


def test_without_memory_for_a_second_copy_fp32_serves(
    model: ServedModel, dev: list[Record], auto: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(owner: ServedModel, *arguments: object) -> _Rounding:
        if len(arguments) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.\nand more")
        assert owner.network is not None
        return _Rounding(owner.network, "fp32", {})

    _on_a_gpu(monkeypatch, make)
    backend, choice = select_backend(model, auto, "weights", lambda: dev)
    assert (backend.precision, choice.precision) == ("fp32", "fp32")
    assert choice.reason == "bf16 is not used: CUDA out of memory."


def test_a_fallback_to_full_precision_is_not_taken_for_the_lower_one(
    model: ServedModel, dev: list[Record], auto: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[_Rounding]()

    def make(owner: ServedModel, *_: object) -> _Rounding:
        assert owner.network is not None
        made.append(_Rounding(owner.network, "fp32", {}))
        return made[-1]

    _on_a_gpu(monkeypatch, make)
    backend, choice = select_backend(model, auto, "weights", lambda: dev)
    assert len(made) == 2
    assert backend is made[0]
    assert "bf16 is not used: the network cannot be run in it" in choice.reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_fail_the_comparison(model: ServedModel, value: float) -> None:
    rng = np.random.default_rng(0)
    full = {task: rng.normal(size=(4, len(classes))).astype(np.float32) for task, classes in model.tasks.items()}
    full["embedding"] = rng.normal(size=(4, 8)).astype(np.float32)
    for name in full:
        low = {task: values.copy() for task, values in full.items()}
        low[name][1, 0] = value
        parity = compare(model, full, low, ["a caption"] * 4)
        assert not parity.holds, name
        assert parity.describe("fp16") == "On 4 dev images outputs in fp32 or fp16 are not finite."


def test_a_changed_label_counts_unless_it_was_a_tie(model: ServedModel) -> None:
    rng = np.random.default_rng(0)
    full = {task: rng.normal(size=(4, len(classes))).astype(np.float32) for task, classes in model.tasks.items()}
    full["modality"][:] = [[0.001, 0.0], [0.0, 2.0], [0.02, 0.0], [0.0, 2.0]]
    low = {task: values.copy() for task, values in full.items()}
    captions = ["a caption"] * 4
    same = compare(model, full, low, captions)
    assert dataclasses.astuple(same) == (4, 0, 0.0)
    assert same.holds
    temperature = model.card.temperature["modality"]
    low["modality"][0] = [0.0, 0.0005]
    tie = compare(model, full, low, captions)
    assert (tie.changed, tie.holds) == (0, True)
    low["modality"][2] = [0.0, 0.02 * temperature]
    changed = compare(model, full, low, captions)
    assert (changed.changed, changed.holds) == (1, False)
    assert changed.shift < 0.02
    low["modality"][2] = full["modality"][2]
    low["modality"][1] = [0.0, 2.0 + 0.5 * temperature]
    moved = compare(model, full, low, captions)
    assert (moved.changed, moved.holds) == (0, False)
    assert moved.shift > 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cpu_and_gpu_give_the_same_labels(
    model: ServedModel, dev: list[Record], records: list[Record], auto: Settings
) -> None:
    assert model.preprocess is not None
    pixels = load_images([record for record in records if record.split == "test"], model.preprocess)
    answers = []
    for settings in (auto.model_copy(update={"precision": "fp32"}), auto.model_copy(update={"device": "cuda"})):
        backend, _ = select_backend(model, settings, "weights", lambda: dev)
        answers.append(model.combine(backend.run(pixels), None))
    for task, expected in answers[0].items():
        assert (answers[1][task].argmax(axis=1) == expected.argmax(axis=1)).all()
        assert answers[1][task] == pytest.approx(expected, abs=MAX_SHIFT)
