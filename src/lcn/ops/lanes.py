"""Vector building blocks of the CPU kernels: register tiles written as LLVM vector code.

A loop over scalars leaves it to the compiler whether sums stay in registers; these blocks say so.
Lanes are eight floats wide, which LLVM maps on whatever the machine has (AVX, SSE, NEON). All
addresses and strides are in bytes, blocks are padded by the caller, nothing is checked here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANE = 8
"""Floats of one vector."""
WIDTH = 2 * LANE
"""Row widths are padded to a multiple of this."""
FLOAT, INT = ir.FloatType(), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANE)
# NaN and infinity keep their meaning (-inf is "no row"); only the order of sums is free.
FAST = ("reassoc", "contract", "nsz", "arcp")


def _cache_folder() -> Path | None:
    """Where compiled kernels are kept, or None where nothing can be written.

    The folder's name holds a digest of the sources: numba itself notices a change only in the
    file of the compiled function, not in the files that it inlines from.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted([*here.glob("cpu_*.py"), *here.glob("lane*.py")]):
        digest.update(source.read_bytes())
    home = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(home) if home else Path.home() / ".cache") / "lcn"
        folder = folder / f"kernels-{digest.hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


_FOLDER = _cache_folder()


@contextlib.contextmanager
def _cache_here() -> Iterator[None]:
    """Let numba choose `_FOLDER` for the functions declared inside."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_FOLDER or "")
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first call, without the interpreter lock, kept on disk where possible."""
    with _cache_here():
        return numba.njit(
            function,
            nogil=True,
            fastmath=set(FAST),
            error_model="numpy",
            cache=_FOLDER is not None,
        )


def load(builder: Any, address: Any, kind: Any) -> Any:
    """Emit a load of one value of an LLVM type from an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def store(builder: Any, value: Any, address: Any) -> None:
    """Emit a store to an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def splat(builder: Any, value: Any) -> Any:
    """Emit eight copies of a float."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANE), [0] * LANE)
    return builder.shuffle_vector(first, undefined, zeros)


def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Emit x y + z."""
    # Not llvm.fma: where there is no such instruction it becomes a library call per lane.
    return builder.fadd(builder.fmul(x, y, flags=FAST), z, flags=FAST)


def _offset(builder: Any, base: Any, *steps: tuple[Any, int]) -> Any:
    for stride, count in steps:
        base = builder.add(base, builder.mul(stride, ir.Constant(INT, count)))
    return base


def _zero_sums(builder: Any, count: int) -> list[Any]:
    zero = ir.Constant(VECTOR, [0.0] * LANE)
    return [cgutils.alloca_once_value(builder, zero) for _ in range(count)]


def _tile(high: int, wide: int, unroll: int, add: bool) -> Any:
    """Make c[m, n] (+)= sum_k a[m, k] b[k, n] for `high` rows m and `wide` vectors of n.

    `a` may have any strides, `b` and `c` are contiguous along n. `unroll` sums run side by side
    along k, where `high * wide` alone would wait for the adder.
    """

    @intrinsic
    def tile(context, a, a_row, a_deep, b, b_deep, c, c_row, depth):  # noqa: PLR0913, PLR0917
        def build(target, builder, signature, args):
            a, a_row, a_deep, b, b_deep, c, c_row, depth = args
            sums = _zero_sums(builder, high * wide * unroll)
            last = builder.sub(depth, ir.Constant(INT, unroll - 1))
            with cgutils.for_range_slice(
                builder, ir.Constant(INT, 0), last, ir.Constant(INT, unroll), INT
            ) as (k, _count):
                for u in range(unroll):
                    deep = builder.add(k, ir.Constant(INT, u))
                    base_b = builder.add(b, builder.mul(deep, b_deep))
                    base_a = builder.add(a, builder.mul(deep, a_deep))
                    lanes = [
                        load(builder, builder.add(base_b, ir.Constant(INT, 4 * LANE * n)), VECTOR)
                        for n in range(wide)
                    ]
                    for m in range(high):
                        x = load(builder, _offset(builder, base_a, (a_row, m)), FLOAT)
                        x = splat(builder, x)
                        for n in range(wide):
                            slot = sums[(u * high + m) * wide + n]
                            builder.store(fma(builder, x, lanes[n], builder.load(slot)), slot)
            for m in range(high):
                for n in range(wide):
                    address = _offset(builder, c, (c_row, m))
                    address = builder.add(address, ir.Constant(INT, 4 * LANE * n))
                    total = builder.load(sums[m * wide + n])
                    for u in range(1, unroll):
                        part = builder.load(sums[(u * high + m) * wide + n])
                        total = builder.fadd(total, part, flags=FAST)
                    if add:
                        total = builder.fadd(total, load(builder, address, VECTOR), flags=FAST)
                    store(builder, total, address)
            return target.get_dummy_value()

        return types.void(*[types.int64] * 8), build

    return tile


add_row_1x8 = _tile(1, 8, 1, add=True)
add_row_1x2 = _tile(1, 2, 1, add=True)
# Eight sums each: enough to keep two multiply-adders busy, few enough for sixteen registers.
tile_8x1 = _tile(8, 1, 1, add=False)
tile_4x2 = _tile(4, 2, 1, add=False)
add_tile_4x2 = _tile(4, 2, 1, add=True)
add_tile_1x2 = _tile(1, 2, 4, add=True)


@intrinsic
def dot_4(context, a, a_row, b, c, depth):
    """Write c[m] = sum_k a[m, k] b[k] for four rows m; depth is a multiple of 16."""
    rows = 4

    def build(target, builder, signature, args):
        a, a_row, b, c, depth = args
        sums = _zero_sums(builder, rows * 2)
        with cgutils.for_range_slice(
            builder, ir.Constant(INT, 0), depth, ir.Constant(INT, WIDTH), INT
        ) as (k, _count):
            deep = builder.mul(k, ir.Constant(INT, 4))
            for u in range(2):
                here = builder.add(deep, ir.Constant(INT, 4 * LANE * u))
                y = load(builder, builder.add(b, here), VECTOR)
                for m in range(rows):
                    row = _offset(builder, builder.add(a, here), (a_row, m))
                    slot = sums[u * rows + m]
                    x = load(builder, row, VECTOR)
                    builder.store(fma(builder, x, y, builder.load(slot)), slot)
        for m in range(rows):
            lanes = builder.fadd(builder.load(sums[m]), builder.load(sums[rows + m]), flags=FAST)
            for half in (4, 2, 1):
                order = [(n + half) % LANE for n in range(LANE)]
                mask = ir.Constant(ir.VectorType(ir.IntType(32), LANE), order)
                lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, lanes, mask), flags=FAST)
            total = builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))
            store(builder, total, builder.add(c, ir.Constant(INT, 4 * m)))
        return target.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@intrinsic
def add_lane(context, a, b):
    """Add the eight floats at `b` to those at `a`."""

    def build(target, builder, signature, args):
        a, b = (load(builder, address, VECTOR) for address in args)
        store(builder, builder.fadd(a, b, flags=FAST), args[0])
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def copy_lane(context, a, b):
    """Copy the eight floats at `b` to `a`."""

    def build(target, builder, signature, args):
        store(builder, load(builder, args[1], VECTOR), args[0])
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def prefetch(context, address):
    """Ask for the cache line at an address, which need not be valid."""

    def build(target, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, i32(0), i32(3), i32(1)])
        return target.get_dummy_value()

    return types.void(types.int64), build
