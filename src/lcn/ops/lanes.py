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

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANE = 8
"""Floats of one vector."""
WIDTH = 2 * LANE
"""Row widths are padded to a multiple of this."""
BROAD = 2 * LANE if llvmlite.binding.get_host_cpu_features().get("avx512f") else LANE
"""Floats of the widest vector that the machine multiplies at once."""
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
    return _compiled(function, counted=True)


def leaf(function: Callable[..., Any]) -> Any:
    """`kernel` for what neither allocates nor returns arrays: memory of arrays is not counted.

    Counting references to arrays costs two locked instructions wherever one is named or sliced,
    a third of the time of a small tile. The caller keeps the arrays alive.
    """
    return _compiled(function, counted=False)


def inlined(function: Callable[..., Any]) -> Any:
    """Paste the function into its callers: the only way for a `leaf` to share code that makes
    views of arrays."""
    return numba.njit(function, inline="always")


def _compiled(function: Callable[..., Any], *, counted: bool) -> Any:
    with _cache_here():
        return numba.njit(
            function,
            nogil=True,
            fastmath=set(FAST),
            error_model="numpy",
            cache=_FOLDER is not None,
            _nrt=counted,
        )


def load(builder: Any, address: Any, kind: Any) -> Any:
    """Emit a load of one value of an LLVM type from an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def store(builder: Any, value: Any, address: Any) -> None:
    """Emit a store to an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def splat(builder: Any, value: Any, lanes: int = LANE) -> Any:
    """Emit as many copies of a float."""
    undefined = ir.Constant(ir.VectorType(FLOAT, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Emit x y + z."""
    # Not llvm.fma: where there is no such instruction it becomes a library call per lane.
    return builder.fadd(builder.fmul(x, y, flags=FAST), z, flags=FAST)


def _offset(builder: Any, base: Any, *steps: tuple[Any, int]) -> Any:
    for stride, count in steps:
        base = builder.add(base, builder.mul(stride, ir.Constant(INT, count)))
    return base


def _zero_sums(builder: Any, count: int, lanes: int = LANE) -> list[Any]:
    zero = ir.Constant(ir.VectorType(FLOAT, lanes), [0.0] * lanes)
    return [cgutils.alloca_once_value(builder, zero) for _ in range(count)]


def _tile(high: int, wide: int, unroll: int, add: bool, lanes: int = LANE) -> Any:
    """Make c[m, n] (+)= sum_k a[m, k] b[k, n] for `high` rows m and `wide` vectors of n.

    `a` may have any strides, `b` and `c` are contiguous along n. `unroll` sums run side by side
    along k, where `high * wide` alone would wait for the adder; depth is a multiple of it.
    """
    vector = ir.VectorType(FLOAT, lanes)

    @intrinsic
    def tile(context, a, a_row, a_deep, b, b_deep, c, c_row, depth):  # noqa: PLR0913, PLR0917
        def build(target, builder, signature, args):
            a, a_row, a_deep, b, b_deep, c, c_row, depth = args
            sums = _zero_sums(builder, high * wide * unroll, lanes)
            last = builder.sub(depth, ir.Constant(INT, unroll - 1))
            with cgutils.for_range_slice(
                builder, ir.Constant(INT, 0), last, ir.Constant(INT, unroll), INT
            ) as (k, _count):
                for u in range(unroll):
                    deep = builder.add(k, ir.Constant(INT, u))
                    base_b = builder.add(b, builder.mul(deep, b_deep))
                    base_a = builder.add(a, builder.mul(deep, a_deep))
                    here = [
                        load(builder, builder.add(base_b, ir.Constant(INT, 4 * lanes * n)), vector)
                        for n in range(wide)
                    ]
                    for m in range(high):
                        x = load(builder, _offset(builder, base_a, (a_row, m)), FLOAT)
                        x = splat(builder, x, lanes)
                        for n in range(wide):
                            slot = sums[(u * high + m) * wide + n]
                            builder.store(fma(builder, x, here[n], builder.load(slot)), slot)
            for m in range(high):
                for n in range(wide):
                    address = _offset(builder, c, (c_row, m))
                    address = builder.add(address, ir.Constant(INT, 4 * lanes * n))
                    total = builder.load(sums[m * wide + n])
                    for u in range(1, unroll):
                        part = builder.load(sums[(u * high + m) * wide + n])
                        total = builder.fadd(total, part, flags=FAST)
                    if add:
                        total = builder.fadd(total, load(builder, address, vector), flags=FAST)
                    store(builder, total, address)
            return target.get_dummy_value()

        return types.void(*[types.int64] * 8), build

    return tile


# Eight sums each: enough to keep two multiply-adders busy, few enough for sixteen registers; with
# the broad vectors come thirty-two registers.
add_row_1x8 = _tile(1, 4, 2, True, BROAD) if BROAD > LANE else _tile(1, 8, 1, True)
"""64 floats; depth is a multiple of 2."""
add_row_1x2 = _tile(1, 2, 1, add=True)
tile_8x1 = _tile(8, 1, 1, add=False)
tile_8x2 = _tile(8, 1, 1, False, BROAD) if BROAD > LANE else _tile(4, 2, 1, add=False)
"""16 floats wide; `ROWS_8X2` rows."""
ROWS_8X2 = 8 if BROAD > LANE else 4
add_tile_4x2 = _tile(4, 2, 1, add=True)
add_tile_8x4 = _tile(8, 2, 1, True, BROAD) if BROAD > LANE else _tile(2, 4, 1, add=True)
"""32 floats wide; `ROWS_8X4` rows."""
ROWS_8X4 = 8 if BROAD > LANE else 2
add_tile_1x2 = _tile(1, 2, 4, add=True)


def _pairs(builder: Any, a: Any, b: Any, first: list[int], second: list[int]) -> Any:
    """Add the lanes `first` of `a` and `b`, one after the other, to the lanes `second`."""
    kind = ir.VectorType(ir.IntType(32), LANE)
    x = builder.shuffle_vector(a, b, ir.Constant(kind, first))
    y = builder.shuffle_vector(a, b, ir.Constant(kind, second))
    return builder.fadd(x, y, flags=FAST)


# Three rounds of pairs transpose eight vectors while adding up their lanes; each is one shuffle of
# two vectors on common machines.
_ROUNDS = (
    ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
)


def _dots(builder: Any, rows: list[Any], b: Any, c: Any, depth: Any) -> None:
    """Emit c[m] = sum_k row m [k] b[k] for the eight addresses of rows."""
    vector = ir.VectorType(FLOAT, BROAD)
    sums = _zero_sums(builder, len(rows), BROAD)
    with cgutils.for_range_slice(
        builder, ir.Constant(INT, 0), depth, ir.Constant(INT, BROAD), INT
    ) as (k, _count):
        deep = builder.mul(k, ir.Constant(INT, 4))
        y = load(builder, builder.add(b, deep), vector)
        for row, total in zip(rows, sums, strict=True):
            x = load(builder, builder.add(row, deep), vector)
            builder.store(fma(builder, x, y, builder.load(total)), total)
    parts = [_fold(builder, builder.load(total)) for total in sums]
    for first, second in _ROUNDS:
        parts = [
            _pairs(builder, parts[n], parts[n + 1], first, second) for n in range(0, len(parts), 2)
        ]
    store(builder, parts[0], c)


@intrinsic
def dot_8(context, a, a_row, b, c, depth):
    """Write c[m] = sum_k a[m, k] b[k] for eight rows m; depth is a multiple of 16."""

    def build(target, builder, signature, args):
        a, a_row, b, c, depth = args
        _dots(builder, [_offset(builder, a, (a_row, m)) for m in range(8)], b, c, depth)
        return target.get_dummy_value()

    return types.void(*[types.int64] * 5), build


def _rows_at(builder: Any, places: Any, count: int, shift: Any) -> list[Any]:
    """Load the addresses of `count` rows and shift them by as many bytes."""
    found = [load(builder, builder.add(places, ir.Constant(INT, 8 * m)), INT) for m in range(count)]
    return [builder.add(place, shift) for place in found]


@intrinsic
def dot_8_at(context, places, shift, b, c, depth):
    """`dot_8` for rows anywhere: their eight addresses lie at `places`, `shift` is added."""

    def build(target, builder, signature, args):
        places, shift, b, c, depth = args
        _dots(builder, _rows_at(builder, places, 8, shift), b, c, depth)
        return target.get_dummy_value()

    return types.void(*[types.int64] * 5), build


def _pool_at(floats: int, unroll: int) -> Any:
    """Make c[n] = sum_m w[m] row[m, n] for rows anywhere; their number is a multiple of 8."""
    vector, wide = ir.VectorType(FLOAT, BROAD), floats // BROAD

    @intrinsic
    def pool_at(context, places, shift, w, c, count):
        def build(target, builder, signature, args):
            places, shift, w, c, count = args
            sums = _zero_sums(builder, unroll * wide, BROAD)
            with cgutils.for_range_slice(
                builder, ir.Constant(INT, 0), count, ir.Constant(INT, unroll), INT
            ) as (m, _count):
                here = builder.add(places, builder.mul(m, ir.Constant(INT, 8)))
                for u, row in enumerate(_rows_at(builder, here, unroll, shift)):
                    at_w = builder.add(w, builder.mul(m, ir.Constant(INT, 4)))
                    each = load(builder, builder.add(at_w, ir.Constant(INT, 4 * u)), FLOAT)
                    each = splat(builder, each, BROAD)
                    for n in range(wide):
                        step = ir.Constant(INT, 4 * BROAD * n)
                        x, slot = load(builder, builder.add(row, step), vector), sums[u * wide + n]
                        builder.store(fma(builder, each, x, builder.load(slot)), slot)
            for n in range(wide):
                total = builder.load(sums[n])
                for u in range(1, unroll):
                    total = builder.fadd(total, builder.load(sums[u * wide + n]), flags=FAST)
                store(builder, total, builder.add(c, ir.Constant(INT, 4 * BROAD * n)))
            return target.get_dummy_value()

        return types.void(*[types.int64] * 5), build

    return pool_at


pool_16_at, pool_64_at = _pool_at(16, 4), _pool_at(64, 2 if BROAD > LANE else 1)


def _fold(builder: Any, lanes: Any) -> Any:
    """Add the upper half of a broad vector to the lower one."""
    if BROAD == LANE:
        return lanes
    kind = ir.VectorType(ir.IntType(32), LANE)
    halves = [
        builder.shuffle_vector(lanes, lanes, ir.Constant(kind, [start + n for n in range(LANE)]))
        for start in (0, LANE)
    ]
    return builder.fadd(*halves, flags=FAST)


@intrinsic
def add_lane(context, a, b):
    """Add the eight floats at `b` to those at `a`."""

    def build(target, builder, signature, args):
        a, b = (load(builder, address, VECTOR) for address in args)
        store(builder, builder.fadd(a, b, flags=FAST), args[0])
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def add_broad(context, a, b):
    """Add the `BROAD` floats at `b` to those at `a`."""

    def build(target, builder, signature, args):
        a, b = (load(builder, address, ir.VectorType(FLOAT, BROAD)) for address in args)
        store(builder, builder.fadd(a, b, flags=FAST), args[0])
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def copy_broad(context, a, b):
    """Copy the `BROAD` floats at `b` to `a`."""

    def build(target, builder, signature, args):
        store(builder, load(builder, args[1], ir.VectorType(FLOAT, BROAD)), args[0])
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
