"""What the service counts and measures, for Prometheus."""

from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_STAGE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARE_BUCKETS: Final = tuple(step / 20 for step in range(1, 21))


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("medpix_requests", "Answers", ["method", "route", "status"], registry=registry)
        self._seconds = Histogram(
            "medpix_request_seconds", "Time of a request", ["route"], registry=registry, buckets=_STAGE_BUCKETS
        )
        self._stages = Histogram(
            "medpix_stage_seconds",
            "Time of a stage: wait (for a thread), decode, queue (for the model), run, postprocess, cache, explain",
            ["model", "stage"],
            registry=registry,
            buckets=_STAGE_BUCKETS,
        )
        self._batches = Histogram(
            "medpix_batch_size", "Images per run of a model", ["model"], registry=registry, buckets=_BATCH_BUCKETS
        )
        self._labels = Counter(
            "medpix_predictions", "Predictions", ["task", "label", "decision", "cached"], registry=registry
        )
        self._confidence = Histogram(
            "medpix_confidence",
            "Probability of the answered class",
            ["task"],
            registry=registry,
            buckets=_SHARE_BUCKETS,
        )
        self._depth = Gauge("medpix_queue_depth", "Images that wait for a model", ["model"], registry=registry)
        self._queues: dict[str, Callable[[], int]] = {}
        self._models = Gauge(
            "medpix_model_info", "Models that serve", ["task", "name", "version", "sha256"], registry=registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            method: of the request.
            route: the template of its address, so that ids do not become labels.
            status: of the answer.
            seconds: that it took.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stages(self, model: str, timings_s: Mapping[str, float]) -> None:
        """Take in how long each stage of an answer took, in seconds."""
        for stage, seconds in timings_s.items():
            self._stages.labels(model, stage).observe(seconds)

    def batch(self, model: str, size: int) -> None:
        """Count a run of a model."""
        self._batches.labels(model).observe(size)

    def prediction(self, task: str, label: str, probability: float, *, confident: bool, cached: bool) -> None:
        """Count a prediction."""
        decision = "confident" if confident else "uncertain"
        self._labels.labels(task, label, decision, str(cached).lower()).inc()
        self._confidence.labels(task).observe(probability)

    def watch_queue(self, model: str, depth: Callable[[], int]) -> Callable[[], None]:
        """Ask for the depth of a queue whenever the metrics are read.

        Returns:
            What ends that, unless another queue has taken the name by then.
        """
        self._queues[model] = depth
        self._depth.labels(model).set_function(depth)

        def end() -> None:
            if self._queues.get(model) is depth:
                del self._queues[model]
                self._depth.remove(model)

        return end

    def serving(self, models: Mapping[str, tuple[str, str, str]]) -> None:
        """Say which model serves each task: name, version, sha256."""
        self._models.clear()
        for task, described in models.items():
            self._models.labels(task, *described).set(1)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
