import pytest

from app.serving.ray_prediction import gpus_per_worker


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "share"),
    [
        ("auto", 2, 0, 0.0),
        ("auto", 2, 2, 1.0),
        ("auto", 1, 4, 1.0),
        ("auto", 3, 2, 0.5),
        ("cpu", 2, 2, 0.0),
        ("cuda", 3, 2, 1.0),
        ("cuda", 2, 0, 1.0),
    ],
)
def test_workers_on_ray_ask_for_the_gpus_that_they_use(device: str, workers: int, gpus: int, share: float) -> None:
    assert gpus_per_worker(device, workers, gpus) == share
