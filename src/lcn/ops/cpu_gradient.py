"""One gradient of the item vectors for all ops of a step that read them.

A step pools over the same vectors five times and more. Each time PyTorch would fill a gradient of
all of them with zeros and add it to the others; here ops add to one buffer, which the node of
`share_gradient` hands on when all of them are done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Sink:
    """The buffer of one backward pass."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._pass = -1

    def buffer(self, shape: torch.Size) -> Tensor:
        """The buffer of the running pass; what an interrupted pass left behind is dropped."""
        running = torch._C._current_graph_task_id()
        if self._buffer is None or self._pass != running:
            self._buffer, self._pass = torch.zeros(shape), running
        return self._buffer

    def take(self) -> Tensor | None:
        """Hand the buffer over, if the running pass has one."""
        buffer, self._buffer = self._buffer, None
        return buffer if self._pass == torch._C._current_graph_task_id() else None


def sink_of(vector_ID: Tensor) -> Sink | None:
    """Where gradients of these vectors are collected; None where each op makes its own."""
    return getattr(vector_ID.grad_fn, "sink", None)


def share_gradient(vector_ID: Tensor) -> Tensor:
    """`lcn.ops.share_gradient`."""
    return _Shared.apply(vector_ID) if torch.is_grad_enabled() else vector_ID  # type: ignore


def take_vectors(vector_ID: Tensor, index_C: Tensor) -> Tensor:
    """`lcn.ops.take_vectors`."""
    sink = sink_of(vector_ID)
    return vector_ID[index_C] if sink is None else _Take.apply(vector_ID, index_C, sink)  # type: ignore


class _Shared(torch.autograd.Function):
    """Identity; its backward comes after those of all readers."""

    @staticmethod
    def forward(ctx: Any, vector_ID: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sink = Sink()
        return vector_ID.view_as(vector_ID)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ID: Tensor | None) -> Tensor | None:  # type: ignore[override]
        buffer = ctx.sink.take()
        if buffer is None or grad_ID is None:
            return grad_ID if buffer is None else buffer
        return buffer.add_(grad_ID)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector_ID: Tensor, index_C: Tensor, sink: Sink) -> Tensor:
        ctx.index_C, ctx.sink, ctx.shape = index_C, sink, vector_ID.shape
        return vector_ID.index_select(0, index_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_CD: Tensor) -> Any:  # type: ignore[override]
        ctx.sink.buffer(ctx.shape).index_add_(0, ctx.index_C, grad_CD)
        return None, None, None
