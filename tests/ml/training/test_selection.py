import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database

from app.core.settings import ConfigurationError
from app.data.schema import ensure_schema
from app.serving.training_status import read_choice, read_progress
from ml.models.model_specs import DEFAULTS
from ml.training import selection
from ml.training.pretrained import CLIP, RESNET50, RemoteWeights
from ml.training.selection import TrainingChoice, check_setting, choose_models

_LIGHT = [name for names in DEFAULTS.values() for name in names]
_LARGE = ["resnet50-modality", "resnet50-location", "clip-location"]


@pytest.fixture
def obtainable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The titles of the weights that can be had; those that are asked for and not in it cannot."""
    titles: set[str] = set()
    monkeypatch.setattr(RemoteWeights, "obtainable", property(lambda remote: remote.title in titles))
    return titles


def test_a_gpu_trains_the_large_models_too(obtainable: set[str]) -> None:
    obtainable |= {CLIP.title, RESNET50.title}
    choice = choose_models(["auto"], "cuda")
    assert choice.models == (*_LIGHT, *_LARGE)
    assert (choice.device, choice.reason, choice.notes) == ("cuda", selection._BY_GPU, ())


def test_a_gpu_without_pretrained_weights_says_what_it_trains_instead(obtainable: set[str]) -> None:
    obtainable.add(CLIP.title)
    choice = choose_models(["auto"], "cuda")
    assert choice.models == (*_LIGHT, *_LARGE)
    assert [note.partition(":")[0] for note in choice.notes] == [
        "resnet50-modality",
        "resnet50-location",
    ]
    assert "neither cached nor reachable; training from scratch." in choice.notes[0]
    assert "`medpix train resnet50-modality --weights PATH`" in choice.notes[0]


def test_a_cpu_trains_what_takes_minutes(obtainable: set[str]) -> None:
    choice = choose_models(["auto"], "cpu")
    assert choice.models == tuple(_LIGHT)
    (note,) = choice.notes
    assert note == (
        "clip-location is left out: the weights of CLIP ViT-B/32 are neither cached nor reachable. "
        "With a copy of them run `medpix train clip-location --weights PATH`; without it training a dual encoder "
        "on the dataset's pairs takes longer."
    )
    obtainable.add(CLIP.title)
    assert choose_models(["auto"], "cpu").models == (*_LIGHT, "clip-location")


def test_nobody_asks_for_the_weights_of_a_model_that_is_trained(obtainable: set[str]) -> None:
    assert not obtainable
    choice = choose_models(["auto"], "cpu", trained={"clip-location"})
    assert (choice.models, choice.notes) == ((*_LIGHT, "clip-location"), ())


def test_names_of_models_and_tasks_win_over_the_machine() -> None:
    choice = choose_models(["knn-colour", "modality"], "cuda")
    assert (choice.models, choice.notes) == (("knn-colour", *DEFAULTS["modality"]), ())
    assert choice.reason == "MEDPIX_TRAIN is knn-colour,modality"
    for setting in (["resnet51"], ["auto", "resnet51"]):
        with pytest.raises(ConfigurationError, match="MEDPIX_TRAIN: 'resnet51' is neither a model nor a task; known"):
            check_setting(setting)


def test_an_address_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import ml.training.pretrained as weights

    monkeypatch.setattr(weights, "_REACHABLE_S", 0.3)
    answered = threading.Event()

    def silent(*_: object, **__: object) -> None:
        answered.wait(30)
        raise httpx.ConnectError("no answer")

    monkeypatch.setattr(httpx, "head", silent)
    started = time.monotonic()
    assert not replace(CLIP, stored=lambda: Path("/no/such")).obtainable
    assert time.monotonic() - started < 5
    answered.set()


def test_the_choice_is_kept_beside_the_training_runs(database: Database[dict[str, Any]], obtainable: set[str]) -> None:
    ensure_schema(database)
    assert read_choice(database) is None
    choice = choose_models(["auto"], "cpu").with_note("a note.")
    assert not obtainable
    choice.save(database)
    assert TrainingChoice.load(database).notes == choice.notes
    stored = read_choice(database)
    assert stored is not None
    assert (stored["models"], stored["device"]) == (list(choice.models), "cpu")
    assert read_progress(database) == [], "it is no training run"
