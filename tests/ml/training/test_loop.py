from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml.training.augment import Augment, grid, mix
from ml.training.checkpoint import Place
from ml.training.loop import Examples, Recipe, fit, make_examples, schedule
from ml.training.progress import Run, silent
from tests.ml.small_options import CPU, RECIPE, network


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Dark discs against bright ones: a task that a small network learns in seconds."""
    random = np.random.default_rng(0)
    targets = np.arange(64) % 2
    pixels = random.integers(0, 40, (64, 1, 32, 32))
    pixels[:, :, 8:24, 8:24] += np.where(targets, 180, 60)[:, None, None, None]
    return make_examples(pixels.astype(np.uint8), {"modality": targets}, np.arange(64).astype(str), 0.0)


def train(
    examples: Examples, recipe: Recipe = RECIPE, checkpoint: Place | Path | None = None, **options: object
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
        **options,  # type: ignore[arg-type]
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
    monkeypatch.setattr("ml.training.loop.half_type", lambda _: None)
    full = train(examples)[1]
    monkeypatch.setattr("ml.training.loop.half_type", lambda _: half)
    run = Run("m", (), silent)
    model, losses = train(examples, checkpoint=Place(None, run))
    assert losses == pytest.approx(full, rel=0.03)
    assert losses != full, "the network did compute in half precision"
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert run.precision == str(half).removeprefix("torch.")


@pytest.mark.gpu
def test_a_gpu_learns_and_goes_on_after_a_stop(examples: Examples, tmp_path: Path) -> None:
    def on_gpu(**options: object) -> nn.Module:
        return fit(
            network(), examples, replace(RECIPE, epochs=8), mean=(0.3,), std=(0.3,), seed=1,
            device=torch.device("cuda"), checkpoint=tmp_path / "state.safetensors", **options,  # type: ignore[arg-type]
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
    _, losses = train(nothing, replace(RECIPE, epochs=1, batch=4))
    assert losses == [0.0]


def test_the_schedule_rises_and_falls() -> None:
    values = [schedule(done, 0.2) for done in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert values == pytest.approx([0.005, 0.5, 1.0, 0.5, 0.0], abs=1e-6)


def test_augmented_images_stay_in_range_and_differ() -> None:
    pixels = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    strong = Augment(noise=0.2, erase=1.0)
    images = strong.apply(pixels, torch.Generator().manual_seed(1))
    assert images.shape == pixels.shape
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0
    assert torch.equal(images, strong.apply(pixels, torch.Generator().manual_seed(1)))
    assert not torch.equal(images, strong.apply(pixels, torch.Generator().manual_seed(2)))


def test_a_batch_is_changed_in_parts_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (11, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    strong = Augment(noise=0.2, erase=1.0)
    at_once = strong.apply(pixels, torch.Generator().manual_seed(1))
    monkeypatch.setattr("ml.training.augment._CACHED", 2 * pixels[0].numel())
    assert torch.equal(strong.apply(pixels, torch.Generator().manual_seed(1)), at_once)


def test_no_augmentation_is_the_image_itself() -> None:
    pixels = torch.randint(1, 256, (2, 1, 16, 16), dtype=torch.uint8)
    none = Augment(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    images: Tensor = none.apply(pixels, torch.Generator().manual_seed(0))
    assert torch.allclose(images, pixels / 255, atol=1e-5)


def test_mixup_blends_with_a_partner() -> None:
    images = torch.rand(6, 1, 8, 8)
    mixed, partner, share = mix(images, 0.4, 1.0, torch.Generator().manual_seed(0))
    assert 0.0 < share < 1.0
    assert torch.allclose(mixed, share * images + (1 - share) * images[partner])
    assert mix(images, 0.0, 1.0, torch.Generator())[2] == 1.0


def test_shares_of_a_mix_are_a_beta_draw() -> None:
    generator, image = torch.Generator().manual_seed(0), torch.zeros(2, 1, 1, 1)
    shares = np.array([mix(image, 0.4, 1.0, generator)[2] for _ in range(3000)])
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), rel=0.05)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 33), (1, 5)])
def test_the_grid_is_that_of_torch(height: int, width: int) -> None:
    theta = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [4, 1, height, width], align_corners=False)
    assert torch.allclose(grid(theta, height, width), expected, atol=1e-6)
