"""Predicts the files of an archive on a Ray cluster."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from app.core.settings import Settings
from app.serving.batch_prediction import BatchPredictionError, BatchPredictor, ImageFile
from ml.registry.model_card import ModelCard


class _RayWorker:
    """An actor of Ray Data; its process loads the models once."""

    def __init__(self, cards: Mapping[str, dict[str, Any]], settings: dict[str, Any]) -> None:
        loaded = {task: ModelCard.model_validate(card) for task, card in cards.items()}
        self._predictor = BatchPredictor(loaded, Settings(**settings)).__enter__()

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._predictor.predict(ImageFile(**row) for row in batch.to_pylist())


def gpus_per_worker(device: str, workers: int, gpus: int) -> float:
    """The GPUs that each worker asks of Ray, which hides those that are not asked for.

    Args:
        device: as in MEDPIX_DEVICE.
        workers: number of processes that predict.
        gpus: of the cluster.

    Returns:
        1 for "cuda"; for "auto" the share of a GPU with which all workers find room; 0 without GPU or for "cpu".
    """
    if device == "auto" and gpus:
        return 1.0 / math.ceil(workers / gpus)
    return 1.0 if device == "cuda" else 0.0


def predict_files_on_ray(
    images: Sequence[ImageFile],
    cards: Mapping[str, ModelCard],
    settings: Settings,
    *,
    address: str,
    workers: int,
    part_files: int = 128,
) -> Iterator[pa.Table]:
    """Predict files on a Ray cluster; a worker that is lost is replaced, and its files are predicted again.

    Args:
        images: of the archive, at paths that every node reads.
        cards: the model of each task; its files are at ``settings.model_files_dir`` on every node.
        settings: limits, device and batch size.
        address: of the cluster; "local": one on this machine, for this run.
        workers: number of processes that predict, each with models of its own.
        part_files: files per table.

    Yields:
        Tables of ``SCHEMA``, in the order in which they are done.

    Raises:
        BatchPredictionError: Ray is not installed, the cluster cannot be reached, or the run failed.
    """
    try:
        import ray  # noqa: PLC0415 - an optional extra, and it takes seconds
        import ray.data  # noqa: PLC0415 - see above
    except ImportError as error:
        raise BatchPredictionError("--ray needs Ray: pip install 'medpix-service[ray]'.") from error
    plain = settings.model_dump(exclude={"api_keys", "mongo_uri", "train"})  # secrets stay here
    table = pa.table(
        {
            "name": pa.array([image.name for image in images], pa.string()),
            "path": pa.array([image.path for image in images], pa.string()),
            "caption": pa.array([image.caption for image in images], pa.string()),
        }
    )
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        resources: dict[str, float] = ray.cluster_resources()
        gpus = gpus_per_worker(settings.device, workers, int(resources.get("GPU", 0)))
        dataset = ray.data.from_arrow(
            [table.slice(start, part_files) for start in range(0, len(images), part_files)]
        ).map_batches(
            _RayWorker,
            fn_constructor_args=({task: card.model_dump() for task, card in cards.items()}, plain),
            batch_format="pyarrow",
            batch_size=part_files,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=gpus,
        )
        yield from dataset.iter_batches(batch_format="pyarrow", batch_size=None)
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        cause = lines[-1].strip() if lines else type(error).__name__
        raise BatchPredictionError(f"Ray ({address}): {cause}. Start the command again to go on.") from error
    finally:
        ray.shutdown()
