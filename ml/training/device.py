"""Where a model runs: device, number format, and the processes that share a training run."""

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function

from app.core.exceptions import UserError

_Value = TypeVar("_Value")
_LOG = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
# Of malloc.h; the threshold is an int.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 1 << 30
# The first process calibrates, embeds the dataset and registers while the others wait at a barrier.
_TEAM_TIMEOUT: Final = timedelta(hours=2)
# Where the kernel module of NVIDIA shows each GPU, whether PyTorch can use it or not.
_NVIDIA_NODES: Final = (Path("/dev"), "nvidia[0-9]*")


class DeviceError(UserError):
    """A device was asked for that this machine does not have."""


def pick_device(name: DeviceName = "auto") -> torch.device:
    """The device to run on; ``auto`` prefers CUDA, then Apple's GPU, then the CPU.

    An NVIDIA GPU that ``auto`` has to leave aside is logged as a warning, with the cause.

    Raises:
        DeviceError: the device is not there.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        warn_of_unusable_gpu()
        name = "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    if name not in has:
        raise DeviceError(f"unknown device {name!r}; known are auto, cpu, cuda and mps")
    if not has[name]:
        fault = cuda_fault() if name == "cuda" else None
        lack = "this machine has none" if fault is None else f"it cannot be used: {fault}"
        raise DeviceError(f"device {name} was asked for, but {lack}; use --device auto")
    if name != "cuda":
        return torch.device(name)
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise DeviceError(f"torchrun started more processes than there are GPUs; use --nproc-per-node {count}")
    return torch.device(name, index)


def cuda_fault() -> str | None:
    """Why PyTorch cannot use an NVIDIA GPU of this machine; None where it can, none is here, or all are hidden."""
    folder, pattern = _NVIDIA_NODES
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if hidden or torch.cuda.is_available() or not any(folder.glob(pattern)):
        return None
    if torch.version.cuda is None:
        return "this build of PyTorch has no CUDA; install one that has"
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # of a driver that is too old, or that fails
        return " ".join(str(error).split())
    return "PyTorch finds no device; look at the output of nvidia-smi, and at CUDA_VISIBLE_DEVICES"


@functools.cache
def warn_of_unusable_gpu() -> None:
    """Log once why an NVIDIA GPU of this machine is not used: work on the CPU must not pass for work on the GPU."""
    if (fault := cuda_fault()) is not None:
        _LOG.warning("this machine has an NVIDIA GPU that cannot be used, models run without it: %s", fault)


def amp_dtype(device: torch.device) -> torch.dtype | None:
    """The number format for mixed precision that pays on a device, None for float32 alone.

    That is bfloat16 where its instructions are in hardware: elsewhere it is emulated and slow.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
    return None


@functools.cache
def keep_freed_memory() -> None:
    """Raise glibc's trim and mmap thresholds, so that the next training step reuses what the last one freed.

    Left alone, glibc gives tensors of more than 32 MB back to the system at once, which hands them out
    again page by page, each one filled with zeros first. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(parameter, _KEPT_BYTES)


def format_name(half: torch.dtype | None) -> str:
    """What a training computes in, in words: bfloat16, float16 or float32."""
    return str(half or torch.float32).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that train one model together, as ``torchrun`` starts them.

    Attributes:
        rank: this process, 0 to world_size - 1; only rank 0 writes files and the database.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch of indices (N,); parts differ in length by one at most."""
        return batch[self.rank :: self.world_size]

    def gather(self, share: Tensor, count: int) -> Tensor:
        """The rows of all processes in the order of the batch that ``share`` divided; the inverse of ``share``.

        The gradient of a row is the sum of those of all processes. So where each process computes the same loss on the
        whole batch, the mean of its gradients, which ``wrap`` takes, is the gradient of one process with that batch.

        Args:
            share: the rows of this process, (n, ...), of a batch whose other rows have the same shape and type.
            count: rows of the batch.

        Returns:
            (count, ...).
        """
        if self.world_size == 1:
            return share
        gathered: Tensor = _Gather.apply(share, self, count)
        return gathered

    def synchronise_norms(self, network: nn.Module) -> None:
        """Let batch norms take mean and variance over the images of all processes, in place, on CUDA.

        ``SyncBatchNorm`` has no implementation for the CPU: there each process normalises by its own images, so what
        several processes train differs a little from what one trains.
        """
        if self.world_size == 1 or next(network.parameters()).device.type != "cuda":
            return
        if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            return  # converted for an earlier phase
        # PyTorch's own conversion would lose the activations that are part of timm's norms.
        from timm.layers.norm_act import convert_sync_batchnorm  # noqa: PLC0415 - takes seconds, for several processes alone

        convert_sync_batchnorm(network)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, with gradients averaged over the team after every backward pass."""
        if self.world_size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor of any shape over all processes, in place."""
        if self.world_size > 1:
            distributed.all_reduce(value)
            value /= self.world_size
        return value

    def agree(self, decide: Callable[[], _Value]) -> _Value:
        """What the first process decides, on every process; the others do not ask.

        Args:
            decide: what a process alone might answer otherwise than the next; its value can be pickled.

        Raises:
            UserError: the first process raised it.
        """
        if self.world_size == 1:
            return decide()
        decision: list[Any] = [None, None]
        if self.is_main_process:
            try:
                decision[0] = decide()
            except UserError as refusal:
                decision[1] = refusal
        distributed.broadcast_object_list(decision)
        value, error = decision
        if error is not None:
            raise error
        agreed: _Value = value
        return agreed

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            distributed.barrier()


class _Gather(Function):
    """An all-gather of shares that differ in length by one at most, with its gradient."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, team: Team, count: int) -> Tensor:
        ctx.team = team
        # Processes can only exchange tensors of one shape: the shorter shares are filled up.
        longest = -(-count // team.world_size)
        padded = share.new_zeros(longest, *share.shape[1:])
        padded[: len(share)] = share
        parts = [torch.empty_like(padded) for _ in range(team.world_size)]
        distributed.all_gather(parts, padded)
        # Row i of process r is row i * world_size + r of the batch, and only the last rows are filling.
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return ctx.team.share(total), None, None


@contextlib.contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """Join the processes that ``torchrun`` started; a team of one without it.

    A program can do so once: around all that it trains. Within the block ``team`` gives the same team.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    if distributed.is_initialized():
        yield Team(distributed.get_rank(), size)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL would use the first for every process
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=_TEAM_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield Team(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
