"""What the service counts and measures, for Prometheus."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.core.progress import Progress

_STAGE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARE_BUCKETS: Final = tuple(step / 20 for step in range(1, 21))


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("medpix_requests", "HTTP responses", ["method", "route", "status"], registry=registry)
        self._seconds = Histogram(
            "medpix_request_seconds", "Duration of a request", ["route"], registry=registry, buckets=_STAGE_BUCKETS
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
        self._database_up = Gauge("medpix_database_up", "1 where the database answers, else 0", registry=registry)
        self._records = Gauge("medpix_records", "Cases and images in the database", ["kind"], registry=registry)
        self._seeded_at = Gauge(
            "medpix_seeded_timestamp_seconds", "End of the last complete seeding", registry=registry
        )
        self._training = Gauge(
            "medpix_training_fraction", "Finished share of a training run", ["model", "state"], registry=registry
        )
        self._cache_bytes = Gauge(
            "medpix_cache_bytes", "Bytes on disk of what can be computed again", ["cache"], registry=registry
        )
        self._cached_predictions = Gauge(
            "medpix_cached_predictions", "Predictions in memory that need no model", registry=registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a response.

        Args:
            method: of the request.
            route: the template of its address, so that ids do not become labels.
            status: of the response.
            seconds: duration of the request.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stages(self, model: str, timings_s: Mapping[str, float]) -> None:
        """Record how long each stage of an answer took, in seconds."""
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
        """Register a callback that gives the depth of a queue whenever the metrics are read.

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
        """Set which model serves each task: name, version, sha256."""
        self._models.clear()
        for task, described in models.items():
            self._models.labels(task, *described).set(1)

    def database(self, *, cases: int | None, images: int | None, seeded_at: datetime | None) -> None:
        """Set the counts of the database; None where it does not answer, or was never seeded."""
        self._database_up.set(0 if cases is None else 1)
        for kind, count in (("cases", cases), ("images", images)):
            if count is not None:
                self._records.labels(kind).set(count)
        if seeded_at is not None:
            self._seeded_at.set(seeded_at.timestamp())

    def training(self, runs: Iterable[Progress]) -> None:
        """Set the progress of each training run."""
        self._training.clear()
        for run in runs:
            self._training.labels(run.name, run.state).set(run.fraction)

    def disk_cache(self, sizes: Mapping[str, int]) -> None:
        """Set the bytes of each part of the cache folder."""
        self._cache_bytes.clear()
        for name, size in sizes.items():
            self._cache_bytes.labels(name).set(size)

    def watch_cached_predictions(self, count: Callable[[], int]) -> None:
        """Register a callback that gives the number of cached predictions whenever the metrics are read."""
        self._cached_predictions.set_function(count)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
