"""Runs code for CUDA on a machine that has none, with tensors that have a shape and a device but no values.

PyTorch's own ``FakeTensorMode`` propagates shape, type and device through every operation, and raises what a GPU would
where tensors of the CPU and of the GPU meet. Where values are asked for it would end; here they are all alike.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

CUDA: Final = torch.device("cuda", 0)
# Of every element whose value is asked for; no probability, share or index of these tests is out of range with it.
VALUE: Final = 0.5


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within it the device ``CUDA`` is there, and tensors that are made are fakes."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(FakeTensor, "numpy", _numpy, create=True),
        mock.patch.object(FakeTensor, "__deepcopy__", _deepcopy, create=True),
        mock.patch.object(FakeTensor, "item", _item, create=True),
        mock.patch.object(FakeTensor, "__float__", _item, create=True),
        mock.patch.object(FakeTensor, "tolist", lambda self: _array(self).tolist(), create=True),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("safetensors.torch.save_file", _save_file),
        mock.patch.object(Tensor, "pin_memory", lambda self: self),
        mock.patch("torch.cuda.current_stream"),
        mock.patch.object(Tensor, "backward", _backward),
        mock.patch("torch.autograd.grad", lambda _, inputs: [torch.empty_like(tensor) for tensor in inputs]),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.Generator", _generator),
    ):
        yield


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What ``to`` does to a module; PyTorch's own cannot exchange the tensor in a parameter of fakes."""
    for child in module.children() if recurse else ():
        _apply(child, change)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        changed = change(parameter.detach())
        if (changed.device, changed.dtype) != (parameter.device, parameter.dtype):
            module._parameters[name] = nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """PyTorch's own looks at the memory of a tensor."""
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, tensor.requires_grad)
    memo[id(tensor)] = copied
    return copied


def _backward(loss: Tensor) -> None:
    """Give every weight that a loss depends on a gradient; PyTorch's engine would ask the driver for a stream."""
    visited, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if (weight := getattr(node, "variable", None)) is not None:
            weight.grad = torch.empty_like(weight)
        todo += [following for following, _ in node.next_functions]


_save = safetensors.torch.save_file


def _save_file(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A file with values, all alike."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    with unset_fake_temporarily():
        _save({name: torch.from_numpy(array) for name, array in arrays.items()}, path, metadata)


_Generator = torch.Generator


def _generator(device: Any = "cpu") -> torch.Generator:
    """A generator of the CPU, in place of one that needs a driver."""
    del device
    return _Generator()


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    kind = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return np.full(tuple(tensor.shape), VALUE).astype(str(kind.dtype).removeprefix("torch."))


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy; use Tensor.cpu() first")
    return _array(tensor)


def _item(tensor: torch.Tensor) -> float:
    return float(_array(tensor).reshape(()).item())
