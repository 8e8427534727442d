import asyncio
import json
import re
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api import factory
from app.core.disk_cache import DiskCache
from app.core.telemetry import Metrics
from tests.api.predict_client import ask
from tests.conftest import REPOSITORY

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def _value(client: httpx.Client, metric: str, /, **labels: str) -> float:
    """The sum of all samples of a name that carry some labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    )


def test_a_prediction_is_counted(predict_api: httpx.Client, png: bytes) -> None:
    data = png + b"metrics"

    def numbers() -> list[float]:
        return [
            _value(predict_api, "medpix_requests_total", route="/predict/modality", status="200", method="POST"),
            _value(predict_api, "medpix_request_seconds_count", route="/predict/modality"),
            _value(predict_api, "medpix_stage_seconds_count", stage="run", model="compact"),
            _value(predict_api, "medpix_stage_seconds_count", stage="cache", model="compact"),
            _value(predict_api, "medpix_batch_size_count", model="compact"),
            _value(predict_api, "medpix_predictions_total", task="modality"),
            _value(predict_api, "medpix_confidence_count", task="modality"),
        ]

    before = numbers()
    label = ask(predict_api, "/predict/modality", data).json()["label"]
    ask(predict_api, "/predict/modality", data)
    assert [after - was for after, was in zip(numbers(), before, strict=True)] == [2, 2, 1, 1, 1, 2, 2]
    assert _value(predict_api, "medpix_predictions_total", label=label, cached="true") >= 1


def test_ids_and_unknown_addresses_do_not_become_labels(predict_api: httpx.Client) -> None:
    predict_api.get("/cases/MPX9999")
    predict_api.get("/no/such/address")
    text = predict_api.get("/metrics").text
    assert "MPX9999" not in text
    assert "/no/such" not in text
    assert _value(predict_api, "medpix_requests_total", route="/cases/{u_id}", status="404") >= 1
    assert _value(predict_api, "medpix_requests_total", route="other", status="404") >= 1


def test_the_models_that_serve_are_named(predict_api: httpx.Client) -> None:
    served = predict_api.get("/models").json()["tasks"]
    for task in ("modality", "location"):
        version = served[task]["version"]
        assert _value(predict_api, "medpix_model_info", task=task, name=served[task]["model"], version=version) == 1
    assert _value(predict_api, "medpix_queue_depth") == 0


def test_database_training_and_caches_are_measured(predict_api: httpx.Client) -> None:
    assert _value(predict_api, "medpix_database_up") == 1
    assert _value(predict_api, "medpix_records", kind="cases") == 40
    seeded_at = _value(predict_api, "medpix_seeded_timestamp_seconds")
    assert time.time() - 3600 < seeded_at <= time.time()
    image = predict_api.get("/images", params={"limit": 1}).json()["items"][0]["image"]
    assert predict_api.get(f"/images/{image}/thumbnail").status_code == 200
    assert _value(predict_api, "medpix_training_fraction", model="compact", state="done") == 1


def test_the_dashboard_asks_for_metrics_and_labels_that_exist(predict_api: httpx.Client, png: bytes) -> None:
    ask(predict_api, "/predict/modality", png + b"dashboard")
    families = list(text_string_to_metric_families(predict_api.get("/metrics").text))
    # A metric without a sample yet is known by its family alone.
    names = {f"{family.name}{suffix}" for family in families for suffix in _SUFFIXES[family.type]}
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    panels = json.loads((REPOSITORY / "docs" / "grafana-dashboard.json").read_text())["panels"]
    targets = [target for panel in panels for target in panel["targets"]]
    used = {name for target in targets for name in re.findall(r"medpix_\w+", target["expr"])}
    assert used <= names
    measured = {family.name for family in families if not family.name.endswith("_created")}
    assert measured <= {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    grouped = " ".join(re.findall(r"by \(([^)]*)\)", " ".join(target["expr"] for target in targets)))
    legends = re.findall(r"{{(\w+)}}", " ".join(target["legendFormat"] for target in targets))
    assert {*re.findall(r"\w+", grouped), *legends} <= labels | {"cache"}


def test_the_cache_is_trimmed_again_after_a_trim_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[dict[str, int] | OSError] = [OSError("Input/output error"), {"thumbnails": 7}]
    cache = DiskCache(tmp_path, 0)

    def trim() -> dict[str, int]:
        result = results.pop(0) if len(results) > 1 else results[0]
        if isinstance(result, OSError):
            raise result
        return result

    async def trim_until_measured() -> None:
        measured = asyncio.Event()
        metrics = Metrics()
        monkeypatch.setattr(metrics, "disk_cache", lambda _: measured.set())
        task = asyncio.create_task(factory._trim_cache(cache, metrics))
        await asyncio.wait_for(measured.wait(), 10)
        task.cancel()

    monkeypatch.setattr(cache, "trim", trim)
    monkeypatch.setattr(factory, "_TRIM_EVERY_S", 0.01)
    asyncio.run(trim_until_measured())
    assert caplog.text.count("cannot be trimmed") == 1
