"""The training loop of every network."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ml.dataset.labels import IGNORED
from ml.training.augment import Augment
from ml.training.checkpoint import Checkpoint, CheckpointPath, TrainState, digest
from ml.training.device import Team, amp_dtype, format_name, keep_freed_memory

OnEpoch = Callable[[int, float], None]


@runtime_checkable
class BatchLoss(Protocol):
    """A network with a loss that compares the images of a batch, which is added to those of its tasks.

    Attributes:
        batch_outputs: names of the outputs that the loss takes, (N, ...) each.
    """

    batch_outputs: tuple[str, ...]

    def batch_loss(self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            outputs: those named by ``batch_outputs``, of all images of the batch, whichever process they are on.
            inputs: the ``loss_inputs`` of the examples for the same images.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every hyper-parameter of a training run.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        learning_rate: highest learning rate; each parameter group scales it.
        warmup: share of the steps over which the rate rises from zero.
        weight_decay: of AdamW, on weights of two and more axes.
        smoothing: label smoothing.
        ema_decay: decay of the exponential moving average of the weights, which is what is kept.
        max_grad_norm: largest norm of the gradient.
        task_weights: weight of each task in the loss; tasks that are not named are not trained.
        augment: random changes of the images.
        amp: automatic mixed precision, where the device has it in hardware.
    """

    epochs: int = 45
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.15
    weight_decay: float = 0.05
    smoothing: float = 0.05
    ema_decay: float = 0.995
    max_grad_norm: float = 2.0
    task_weights: Mapping[str, float] = field(
        default_factory=lambda: {"modality": 1.0, "location": 1.0, "location_category": 1.0}
    )
    augment: Augment = field(default_factory=Augment)
    amp: bool = True

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Examples:
    """What a network learns from, in memory.

    Attributes:
        pixels: uint8 tensor (N, C, H, W).
        targets: per task int64 tensor (N,), ``IGNORED`` where there is no label.
        weights: float32 tensor (N,), mean 1.
        inputs: what the network takes beside the images, by the name of its argument, (N, ...) each.
        loss_inputs: what a ``BatchLoss`` takes beside the outputs, by name, (N, ...) each.
    """

    pixels: Tensor
    targets: Mapping[str, Tensor]
    weights: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    loss_inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device) -> "Examples":
        """The same examples on a device."""
        return Examples(
            self.pixels.to(device),
            {task: target.to(device) for task, target in self.targets.items()},
            self.weights.to(device),
            {name: value.to(device) for name, value in self.inputs.items()},
            {name: value.to(device) for name, value in self.loss_inputs.items()},
        )


def make_examples(
    pixels: NDArray[np.uint8],
    targets: Mapping[str, NDArray[np.int64]],
    groups: NDArray[np.str_],
    case_weight: float = 0.0,
) -> Examples:
    """Examples, and their weights in the loss.

    Args:
        pixels: (N, C, H, W).
        targets: per task (N,).
        groups: case of each image, (N,).
        case_weight: exponent p of the weight (images of the case)^-p, so that a case with thirty images does not
            count thirty times: 0 for none, 1 for equal cases.
    """
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = counts[inverse].astype(np.float64) ** -case_weight
    return Examples(
        torch.from_numpy(pixels),
        {task: torch.from_numpy(target) for task, target in targets.items()},
        torch.from_numpy((weights / weights.mean()).astype(np.float32)),
    )


def fit(
    network: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    device: torch.device,
    team: Team | None = None,
    rates: Mapping[str, float] | None = None,
    checkpoint: CheckpointPath | Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> nn.Module:
    """Train a network in place; it ends with the moving average of its weights.

    Randomness comes from the seed and the number of the epoch alone, so a run that was killed and
    continued from its checkpoint sees what an unbroken run would have seen.

    Args:
        network: normalised images, and the further inputs of the examples, to a dict of logits per task, as
            ``MultiTaskNetwork``. Where it is a ``BatchLoss``, that loss is minimised too.
        examples: what to learn from.
        recipe: how.
        mean: per channel, in units of 0 to 1.
        std: per channel, in units of 0 to 1.
        seed: of order, augmentation and dropout.
        device: where to train.
        team: the processes that share the run; None for this one alone. On CUDA the batch norms of the network
            become ``SyncBatchNorm``, whose weights have the same names.
        rates: factor on the learning rate by prefix of the parameter's name, the longest prefix
            wins; 0 freezes. Batch norms of frozen parts keep their statistics.
        checkpoint: file to continue from where it is of the same run, and to write after each epoch.
        on_epoch: called with the finished epochs and the mean loss of the last, before the checkpoint
            is written: what it tells the run is kept with it.

    Returns:
        The network, on ``device``, in evaluation mode.

    Raises:
        ml.training.checkpoint.CheckpointError: the checkpoint could not be written.
    """
    team = team or Team()
    path = checkpoint if isinstance(checkpoint, CheckpointPath) else CheckpointPath(checkpoint)
    identity = {
        "recipe": recipe.to_json(),
        "rates": dict(rates or {}),
        "seed": seed,
        "mean and deviation": [mean, std],
        "number of processes": team.world_size,
        **({} if path.path is None else contents(network, examples)),
    }
    keep_freed_memory()
    torch.manual_seed(seed)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    team.synchronise_norms(network)
    examples = examples.to(device)
    optimizer = _optimizer(network, recipe, rates or {})
    normalise = _Normaliser(mean, std, device)
    trainer = _Trainer(network, optimizer, recipe, team=team, normalise=normalise)
    path.run.precision = format_name(trainer.amp_dtype)
    state = TrainState(network, trainer.ema, optimizer, trainer.scaler)
    saved = Checkpoint(path, state, identity, recipe.epochs)
    for epoch in range(saved.restore(), recipe.epochs):
        loss = trainer.epoch(examples, epoch, seed, path.run.update)
        if on_epoch is not None:
            on_epoch(epoch + 1, loss)
        if team.is_main_process:
            saved.save(epoch + 1)
    network.load_state_dict(trainer.ema)
    return network.eval()


def contents(network: nn.Module, examples: Examples) -> dict[str, str]:
    """The hashes of what a training starts from, for the identity of its checkpoints."""
    further = [*examples.inputs.values(), *examples.loss_inputs.values()]
    return {
        "images": digest([examples.pixels]),
        "labels": digest([*examples.targets.values(), examples.weights, *further]),
        "starting weights": digest(network.state_dict().values()),
        # What is no weight, as a share that is dropped.
        "architecture": hashlib.sha256(repr(network).encode()).hexdigest(),
    }


def summed_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """The sum of the weighted cross-entropies of N examples, a scalar.

    Args:
        logits: (N, classes).
        target: (N,); examples with ``IGNORED`` add nothing.
        weights: (N,).
        smoothing: label smoothing.
    """
    losses = functional.cross_entropy(
        logits.float(), target, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )
    return (losses * weights).sum()


class _Normaliser:
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images in place, and lay them out as the convolutions want them."""
        return images.sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)


class _Trainer:
    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        *,
        team: Team,
        normalise: _Normaliser,
    ) -> None:
        self.network, self.parallel, self.optimizer = network, team.wrap(network), optimizer
        self.recipe, self.team, self.normalise = recipe, team, normalise
        self.device = next(network.parameters()).device
        self.amp_dtype = amp_dtype(self.device) if recipe.amp else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        state = network.state_dict()
        self.ema = {name: value.clone() for name, value in state.items()}
        # The weights are changed in place, so they can be looked up once.
        averaged = [name for name, value in state.items() if value.dtype.is_floating_point]
        self._averaged = [self.ema[name] for name in averaged], [state[name] for name in averaged]
        self._counters = [(self.ema[name], state[name]) for name in state if name not in averaged]

    def epoch(self, examples: Examples, epoch: int, seed: int, on_progress: Callable[[float], None]) -> float:
        """One pass over the examples; returns the mean loss of all processes."""
        torch.manual_seed(_mix_seed(seed, epoch, self.team.rank))
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(_mix_seed(seed, epoch, 0)))
        generator = torch.Generator(self.device).manual_seed(_mix_seed(seed, epoch, 1 + self.team.rank))
        steps = max(1, len(examples) // self.recipe.batch_size)
        _set_training(self.network)
        self.parallel.training = True
        total = torch.zeros((), device=self.device)
        for step in range(steps):
            batch = order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size]
            done = (epoch * steps + step) / (self.recipe.epochs * steps)
            total += self._step(examples, batch.to(self.device), done, generator)
            self._update_ema(epoch * steps + step)
            on_progress(done)
        return float(self.team.mean(total)) / steps

    def _step(self, examples: Examples, batch: Tensor, done: float, generator: torch.Generator) -> Tensor:
        """One step on a batch of indices (N,), of which this process takes its share; returns its loss."""
        index = self.team.share(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * group["factor"] * schedule(done, self.recipe.warmup)
        images = self.recipe.augment.apply(examples.pixels.index_select(0, index), generator)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            inputs = {name: value.index_select(0, index) for name, value in examples.inputs.items()}
            outputs: dict[str, Tensor] = self.parallel(self.normalise(images), **inputs)
        loss = self._loss(outputs, examples, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _loss(self, outputs: Mapping[str, Tensor], examples: Examples, batch: Tensor) -> Tensor:
        """The loss of this process, a scalar; its mean over the processes is the loss of the whole batch.

        Every process has all labels, so the labelled images of the batch are counted without asking the others.
        """
        index = self.team.share(batch)
        total = torch.zeros((), device=self.device)
        if isinstance(self.network, BatchLoss):
            whole = {name: self.team.gather(outputs[name], len(batch)) for name in self.network.batch_outputs}
            inputs = {name: value.index_select(0, batch) for name, value in examples.loss_inputs.items()}
            total = self.network.batch_loss(whole, inputs)
        for task, weight in self.recipe.task_weights.items():
            targets = examples.targets[task]
            losses = summed_cross_entropy(outputs[task], targets[index], examples.weights[index], self.recipe.smoothing)
            count = (targets[batch] != IGNORED).sum().clamp_min(1)
            total = total + weight * self.team.world_size * losses / count
        return total

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        get_ema_multi_avg_fn(ema_decay(self.recipe.ema_decay, step))(*self._averaged, step)
        for average, count in self._counters:
            average.copy_(count)


def ema_decay(decay: float, step: int) -> float:
    """The decay of the moving average at a step: lower at first, so that the random start is soon forgotten."""
    return min(decay, (1.0 + step) / (10.0 + step))


def schedule(done: float, warmup: float) -> float:
    """The factor on the learning rate: a linear rise, then half a cosine down to zero.

    Args:
        done: finished share of the steps, 0 to 1.
        warmup: share of the steps that the rise takes.
    """
    if done < warmup:
        return max(done, 1e-3) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def _mix_seed(seed: int, epoch: int, stream: int) -> int:
    return (seed * 1_000_003 + epoch) * 101 + stream


def _set_training(network: nn.Module) -> None:
    network.train()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and own and not any(p.requires_grad for p in own):
            module.eval()


def _optimizer(network: nn.Module, recipe: Recipe, rates: Mapping[str, float]) -> torch.optim.Optimizer:
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        prefixes = [prefix for prefix in rates if name.startswith(prefix)]
        factor = rates[max(prefixes, key=len)] if prefixes else 1.0
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "factor": factor, "weight_decay": recipe.weight_decay if decays else 0.0}
            for (factor, decays), members in groups.items()
        ],
        lr=recipe.learning_rate,
    )
