"""A device that is not there: tensors hold CPU memory but say they are elsewhere.

Every operation checks that its tensors are in one place, as a GPU would, and is then computed on
the CPU. So a whole training step can be tested for tensors left behind on the wrong device, on a
machine without a GPU. It says "meta" because PyTorch has that device on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
"""What may look at two places; reading a number back is a copy too."""


class Elsewhere(torch.Tensor):
    """A tensor that says it is on the pretended device."""

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    def __repr__(self) -> str:
        return f"Elsewhere({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[None]:
    """Inside this block `device="meta"` is the pretended device."""
    with _Operations(), _Literals():
        yield


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor` of Python numbers goes round the dispatcher: make it here, then move it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _compute(func, args, kwargs):
    name = func.name()
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    elsewhere = any(isinstance(x, Elsewhere) for x in tensors)
    if elsewhere and not name.startswith(_COPIES):
        for tensor in tensors:
            # Single numbers may stay on the CPU, as beside a GPU.
            if not isinstance(tensor, Elsewhere) and tensor.dim():
                raise RuntimeError(f"{name}: one tensor is on the CPU, another on the device")
    device = kwargs.get("device")
    if device is not None:
        elsewhere = torch.device(device).type == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*_here(args), **_here(kwargs))
    if not elsewhere:
        return out
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)


def _here(tree):
    return tree_map(lambda x: x.here if isinstance(x, Elsewhere) else x, tree)
