"""A batch as named tensors, so that it can stand in a file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lcn.data.batch import Batch, Rows


def flatten(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name, as safetensors keeps them."""
    tensors = {}
    for name in Batch.__slots__:
        value = getattr(batch, name)
        if isinstance(value, Rows):
            tensors |= {f"{name}.{part}": getattr(value, part) for part in Rows.__slots__}
        else:
            tensors[name] = value
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def unflatten(tensors: dict[str, Tensor]) -> Batch:
    """The batch of `flatten`.

    Raises:
        KeyError, TypeError: a tensor is missing, or one is too many.
    """
    plain: dict[str, Any] = {}
    for domain in ("source", "target"):
        parts = {part: tensors.pop(f"{domain}.{part}") for part in Rows.__slots__}
        plain[domain] = Rows(**parts)
    return Batch(**{**plain, **tensors})
