import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.api.predict_client import ask


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
