"""Predicts an archive on a local Ray cluster of two workers and kills one of them meanwhile."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from app.cli.predict import write_predictions
from app.core.settings import Settings
from app.serving.batch_prediction import ImageFile, find_images
from app.serving.ray_prediction import predict_files_on_ray
from ml.registry.model_card import ModelCard
from tests.cli.running import descendants


def main() -> None:
    """Arguments: the job as JSON, the table to write."""
    job = json.loads(Path(sys.argv[1]).read_text())
    cards = {task: ModelCard.model_validate(card) for task, card in job["cards"].items()}
    images, settings = find_images(Path(job["source"])), Settings(**job["settings"])

    def run(left: Sequence[ImageFile]) -> Iterator[pa.Table]:
        killed = 0
        for table in predict_files_on_ray(left, cards, settings, address="local", workers=2, part_files=3):
            if not killed and (killed := _kill_worker()):
                print(f"killed worker {killed} after the first part")
            yield table

    failed = write_predictions(images, cards, Path(sys.argv[2]), run)
    print(f"{len(images)} files, {failed} with an error")


def _kill_worker() -> int:
    """Kill a process that predicts; returns its number, 0 where none was found."""
    for pid in descendants(os.getpid()):
        title = Path(f"/proc/{pid}/cmdline").read_text()
        if "_RayWorker" in title or "MapWorker" in title:
            os.kill(pid, signal.SIGKILL)
            return pid
    return 0


if __name__ == "__main__":
    main()
