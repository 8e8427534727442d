from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.core.progress import Progress
from ml.training.augment import Augment, grid
from ml.training.checkpoint import CheckpointPath
from ml.training.loop import Examples, Recipe, ema_decay, fit, make_examples, schedule
from ml.training.progress import Run, silent
from tests.ml.small_options import CPU, NO_AUGMENTATION, RECIPE, discs, network


@pytest.fixture(scope="module")
def examples() -> Examples:
    return discs()


def train(
    examples: Examples, recipe: Recipe = RECIPE, checkpoint: CheckpointPath | Path | None = None, **options: object
) -> tuple[nn.Module, list[float]]:
    losses: list[float] = []
    model = fit(
        network(),
        examples,
        recipe,
        mean=(0.3,),
        std=(0.3,),
        seed=1,
        device=CPU,
        checkpoint=checkpoint,
        on_epoch=lambda _, loss: losses.append(loss),
        **options,  # type: ignore[arg-type]  # of several types
    )
    return model, losses


def test_training_learns_the_task(examples: Examples) -> None:
    model, losses = train(examples, replace(RECIPE, epochs=8))
    assert losses[-1] < 0.5 * losses[0]
    inputs = (examples.pixels.float() / 255 - 0.3) / 0.3
    with torch.inference_mode():
        predicted = model(inputs)["modality"].argmax(dim=1)
    assert (predicted == examples.targets["modality"]).float().mean() > 0.95


def test_the_same_seed_gives_the_same_weights(examples: Examples) -> None:
    first, second = train(examples)[0].state_dict(), train(examples)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_run_goes_on_as_if_it_had_not(examples: Examples, tmp_path: Path) -> None:
    unbroken, all_losses = train(examples)
    path = tmp_path / "state.safetensors"

    def stop(epoch: int, _loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            network(), examples, RECIPE, mean=(0.3,), std=(0.3,), seed=1, device=CPU,
            checkpoint=path, on_epoch=stop,
        )  # fmt: skip
    resumed, later_losses = train(examples, checkpoint=path)
    assert later_losses == pytest.approx(all_losses[1:], abs=1e-6)
    state = resumed.state_dict()
    assert all(torch.allclose(value, state[name], atol=1e-6) for name, value in unbroken.state_dict().items())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_mixed_precision_learns_in_weights_of_full_precision(
    half: torch.dtype, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml.training.loop.amp_dtype", lambda _: None)
    full = train(examples)[1]
    monkeypatch.setattr("ml.training.loop.amp_dtype", lambda _: half)
    run = Run("m", (), silent)
    model, losses = train(examples, checkpoint=CheckpointPath(None, run))
    assert losses == pytest.approx(full, rel=0.03)
    assert losses != full, "the network did compute in half precision"
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert run.precision == str(half).removeprefix("torch.")


@pytest.mark.gpu
def test_a_gpu_learns_and_goes_on_after_a_stop(examples: Examples, tmp_path: Path) -> None:
    def on_gpu(**options: object) -> nn.Module:
        return fit(
            network(), examples, replace(RECIPE, epochs=8), mean=(0.3,), std=(0.3,), seed=1,
            device=torch.device("cuda"), checkpoint=tmp_path / "state.safetensors", **options,  # type: ignore[arg-type]  # of several types
        )  # fmt: skip

    def stop(epoch: int, _loss: float) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_gpu(on_epoch=stop)
    model = on_gpu().cpu()
    with torch.inference_mode():
        predicted = model((examples.pixels.float() / 255 - 0.3) / 0.3)["modality"].argmax(dim=1)
    assert (predicted == examples.targets["modality"]).float().mean() > 0.95


def test_a_rate_of_zero_freezes_weights_and_statistics(examples: Examples) -> None:
    before = network().state_dict()
    after = train(examples, rates={"backbone": 0.0})[0].state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == {name for name in before if name.startswith("backbone.")}


def test_the_longest_prefix_sets_the_rate(examples: Examples) -> None:
    before = network().state_dict()
    after = train(examples, rates={"backbone": 0.0, "backbone.body.2": 1.0})[0].state_dict()
    changed = {name.rpartition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert all(name.startswith(("backbone.body.2", "heads")) for name in changed)
    assert any(name.startswith("backbone.body.2") for name in changed)


def test_ignored_targets_and_weights_of_cases() -> None:
    targets = np.array([0, 1, -1, 0])
    pixels = np.zeros((4, 1, 32, 32), dtype=np.uint8)
    examples = make_examples(pixels, {"modality": targets}, np.array(["a", "a", "a", "b"]), 1.0)
    assert examples.weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    nothing = replace(examples, targets={"modality": torch.full((4,), -1)})
    _, losses = train(nothing, replace(RECIPE, epochs=1, batch_size=4))
    assert losses == [0.0]


def test_the_kept_weights_are_the_moving_average(examples: Examples) -> None:
    def trained(decay: float) -> dict[str, Tensor]:
        recipe = replace(RECIPE, epochs=2, ema_decay=decay)
        return fit(network(), examples, recipe, mean=(0.5,), std=(0.25,), seed=3, device=CPU).state_dict()

    last, averaged, start = trained(0.0), trained(0.9), network().state_dict()
    name = "heads.modality.weight"
    between = (averaged[name] - start[name]) / (last[name] - start[name])
    assert 0.0 < float(between.median()) < 1.0, "between the start and the end"
    counter = "backbone.stem.1.num_batches_tracked"
    assert torch.equal(last[counter], averaged[counter])


def test_the_decay_of_the_average_grows_from_a_tenth() -> None:
    assert [ema_decay(0.9, step) for step in (0, 10, 1000)] == pytest.approx([0.1, 11 / 20, 0.9])


def test_progress_is_reported_within_an_epoch(examples: Examples) -> None:
    reports: list[Progress] = []
    with Run("m", (), reports.append) as run:
        path = CheckpointPath(run=run)
        fit(network(), examples, RECIPE, mean=(0.5,), std=(0.25,), seed=3, device=CPU, checkpoint=path)
    steps = len(examples) // RECIPE.batch_size
    fractions = [progress.fraction for progress in reports]
    assert steps > 1
    assert len(set(fractions)) >= RECIPE.epochs * steps
    assert fractions == sorted(fractions)


def test_the_schedule_rises_and_falls() -> None:
    values = [schedule(done, 0.2) for done in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert values == pytest.approx([0.005, 0.5, 1.0, 0.5, 0.0], abs=1e-6)


def test_augmented_images_stay_in_range_and_differ() -> None:
    pixels = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    strong = Augment(erase=1.0)
    images = strong.apply(pixels, torch.Generator().manual_seed(1))
    assert images.shape == pixels.shape
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0
    assert torch.equal(images, strong.apply(pixels, torch.Generator().manual_seed(1)))
    assert not torch.equal(images, strong.apply(pixels, torch.Generator().manual_seed(2)))


def changed(pixels: Tensor, **options: float) -> Tensor:
    """A batch with one kind of change alone."""
    return replace(NO_AUGMENTATION, **options).apply(pixels, torch.Generator().manual_seed(0))


def test_images_from_elsewhere() -> None:
    pixels = torch.full((16, 1, 128, 128), 51, dtype=torch.uint8)
    assert torch.allclose(changed(pixels, invert=1.0), torch.tensor(0.8), atol=1e-3)
    bands = changed(pixels, bands=1.0)
    assert bands[:, :, :2].eq(0).any(dim=2).any()
    assert bands[:, :, 13:109].gt(0).all()
    ellipse = changed(pixels, surround=1.0)
    assert ellipse[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].eq(0).all()
    assert ellipse[:, :, 44:84, 44:84].gt(0).all()
    frame = changed(pixels, frame=1.0)
    assert frame[:, :, 0].lt(0.01).any()
    assert frame[:, :, 40:88, 40:88].gt(0.1).all()
    ramp = torch.arange(128, dtype=torch.uint8).mul(2).expand(16, 1, 128, 128)
    window = changed(ramp, window=1.0)
    assert window.eq(0).sum() > ramp.eq(0).sum()
    assert (window.diff(dim=3) >= 0).all()


def test_the_first_images_of_a_batch_are_coarse() -> None:
    pixels = torch.randint(0, 256, (8, 1, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    coarse, plain = changed(pixels, coarse=0.5), changed(pixels)
    assert torch.equal(coarse[4:], plain[4:])
    assert (coarse[:4].var(dim=(1, 2, 3)) < 0.6 * plain[:4].var(dim=(1, 2, 3))).all()


def test_a_batch_is_changed_in_parts_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (11, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    strong = Augment(erase=1.0, window=0.5, invert=0.5, bands=0.5, surround=0.5, frame=0.5, coarse=0.5)
    at_once = strong.apply(pixels, torch.Generator().manual_seed(1))
    monkeypatch.setattr("ml.training.augment._CACHED", 2 * pixels[0].numel())
    assert torch.equal(strong.apply(pixels, torch.Generator().manual_seed(1)), at_once)


def test_no_augmentation_is_the_image_itself() -> None:
    pixels = torch.randint(1, 256, (2, 1, 16, 16), dtype=torch.uint8)
    images = NO_AUGMENTATION.apply(pixels, torch.Generator().manual_seed(0))
    assert torch.allclose(images, pixels / 255, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 33), (1, 5)])
def test_the_grid_is_that_of_torch(height: int, width: int) -> None:
    theta = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [4, 1, height, width], align_corners=False)
    assert torch.allclose(grid(theta, height, width), expected, atol=1e-6)
