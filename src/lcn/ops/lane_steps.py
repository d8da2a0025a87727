"""Softmax and its gradient over blocks of scores, eight columns (or rows) at a time.

Each step walks `count` groups of eight scores that lie `stride` bytes apart: in the wide layout
eight columns down the rows of a block, in the narrow layout the rows of one column. Addresses and
strides are in bytes, as in `lanes`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lcn.ops.lanes import FAST, INT, LANE, VECTOR, fma, leaf, load, store

_WORDS = ir.VectorType(ir.IntType(32), LANE)
_MINUS_INFINITY = float("-inf")
BOTH = 2 * LANE
"""Keys that `split_lanes` takes at once."""


def _constant(value: float) -> Any:
    return ir.Constant(VECTOR, [value] * LANE)


def _exp(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0 within two units in the last place; exactly 0 below -87 and for -inf.

    Source: the polynomial of Cephes' expf.
    """
    small = builder.fcmp_ordered("<", x, _constant(-87.0))
    bounded = builder.select(small, _constant(-87.0), x)
    # Conversion cuts towards zero, so minus a half rounds a negative number to the nearest.
    nearest = builder.fadd(builder.fmul(bounded, _constant(1.44269504)), _constant(-0.5))
    whole = builder.fptosi(nearest, _WORDS)
    step = builder.sitofp(whole, VECTOR)
    # log(2) in two parts; the order of these two steps must stay.
    rest = builder.fadd(bounded, builder.fmul(step, _constant(-0.693359375)))
    rest = builder.fadd(rest, builder.fmul(step, _constant(2.12194440e-4)))
    y = _constant(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = fma(builder, y, rest, _constant(c))
    y = fma(builder, y, builder.fmul(rest, rest), builder.fadd(rest, _constant(1.0)))
    bias = ir.Constant(_WORDS, [127] * LANE)
    shift = ir.Constant(_WORDS, [23] * LANE)
    power = builder.bitcast(builder.shl(builder.add(whole, bias), shift), VECTOR)
    return builder.select(small, _constant(0.0), builder.fmul(y, power))


def _where(builder: Any, mask: Any, x: Any) -> Any:
    return builder.select(mask, x, _constant(0.0))


def _alive(builder: Any, score: Any) -> Any:
    return builder.fcmp_ordered(">", score, _constant(_MINUS_INFINITY))


def _finite_top(builder: Any, top: Any) -> Any:
    """The score that counts as 0: the top, or 0 where there was no row yet."""
    return _where(builder, _alive(builder, top), top)


def _groups(builder: Any, count: Any) -> Any:
    zero, one = ir.Constant(INT, 0), ir.Constant(INT, 1)
    return cgutils.for_range_slice(builder, zero, count, one, INT)


def _total(builder: Any, start: Any = None) -> Any:
    return cgutils.alloca_once_value(builder, _constant(0.0) if start is None else start)


@intrinsic
def max_lanes(context, score, stride, count, top):
    """Raise the eight floats at `top` to the highest score of their lane."""

    def build(target, builder, signature, args):
        score, stride, count, top = args
        best = _total(builder, load(builder, top, VECTOR))
        with _groups(builder, count) as (n, _):
            x = load(builder, builder.add(score, builder.mul(n, stride)), VECTOR)
            old = builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", x, old), x, old), best)
        store(builder, builder.load(best), top)
        return target.get_dummy_value()

    return types.void(*[types.int64] * 4), build


@intrinsic
def exp_lanes(context, score, stride, count, top, total):
    """Replace scores by exp(score - top), write their sums to `total`."""

    def build(target, builder, signature, args):
        score, stride, count, top, total = args
        zero = _finite_top(builder, load(builder, top, VECTOR))
        sums = _total(builder)
        with _groups(builder, count) as (n, _):
            here = builder.add(score, builder.mul(n, stride))
            x = _exp(builder, builder.fsub(load(builder, here, VECTOR), zero))
            store(builder, x, here)
            builder.store(builder.fadd(builder.load(sums), x, flags=FAST), sums)
        store(builder, builder.load(sums), total)
        return target.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@intrinsic
def live_lanes(context, score, stride, count, live, total):
    """Replace -inf by 0; write the sums to `total`, add the number of real scores to `live`."""

    def build(target, builder, signature, args):
        score, stride, count, live, total = args
        sums, real = _total(builder), _total(builder, load(builder, live, VECTOR))
        with _groups(builder, count) as (n, _):
            here = builder.add(score, builder.mul(n, stride))
            x = load(builder, here, VECTOR)
            mask = _alive(builder, x)
            x = _where(builder, mask, x)
            store(builder, x, here)
            builder.store(builder.fadd(builder.load(sums), x, flags=FAST), sums)
            one = _where(builder, mask, _constant(1.0))
            builder.store(builder.fadd(builder.load(real), one, flags=FAST), real)
        store(builder, builder.load(sums), total)
        store(builder, builder.load(real), live)
        return target.get_dummy_value()

    return types.void(*[types.int64] * 5), build


def _turn(softmax: bool) -> Any:
    @intrinsic
    def turn_lanes(  # noqa: PLR0913, PLR0917
        context, score, slope, stride, count, zero, scale, middle, total
    ):
        def build(target, builder, signature, args):
            score, slope, stride, count, zero, scale, middle, total = args
            zero, scale, middle = (load(builder, x, VECTOR) for x in (zero, scale, middle))
            sums = _total(builder)
            with _groups(builder, count) as (n, _):
                step = builder.mul(n, stride)
                at_s, at_dw = builder.add(score, step), builder.add(slope, step)
                s, dw = load(builder, at_s, VECTOR), load(builder, at_dw, VECTOR)
                if softmax:
                    w = _exp(builder, builder.fsub(s, zero))
                    w = builder.fmul(w, scale)
                    ds = builder.fmul(w, builder.fsub(dw, middle))
                else:
                    mask = _alive(builder, s)
                    w = _where(builder, mask, builder.fmul(s, scale))
                    ds = _where(builder, mask, builder.fmul(dw, scale))
                store(builder, w, at_s)
                store(builder, ds, at_dw)
                builder.store(builder.fadd(builder.load(sums), ds, flags=FAST), sums)
            store(builder, builder.load(sums), total)
            return target.get_dummy_value()

        return types.void(*[types.int64] * 8), build

    return turn_lanes


turn_softmax = _turn(softmax=True)
"""Turn (score, dw) into (w, ds): w = exp(score - zero) scale, ds = w (dw - middle); sums of ds go
to `total`. The last five arguments are addresses of eight floats."""
turn_linear = _turn(softmax=False)
"""The same for weights that are scores: w = score scale, ds = dw scale, 0 for -inf."""


def _spread(builder: Any, kind: Any, value: Any) -> Any:
    """Copies of an int32."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(kind, [0] * kind.count))


def _reduced(builder: Any, lanes: Any, sign: str) -> Any:
    """The smallest (<) or largest (>) of all lanes."""
    best = builder.extract_element(lanes, ir.IntType(32)(0))
    for n in range(1, lanes.type.count):
        each = builder.extract_element(lanes, ir.IntType(32)(n))
        best = builder.select(builder.icmp_signed(sign, each, best), each, best)
    return best


def _split(weighted: bool) -> Any:
    """Make a step that splits int32 keys at one; `weight` is their number where not `weighted`."""

    def build(target, builder, signature, args):
        key, weight, groups, middle, ends = args if weighted else (args[0], None, *args[1:])
        words, word = ir.VectorType(ir.IntType(32), BOTH), ir.IntType(32)
        middle = _spread(builder, words, middle)
        highest, lowest, none, one = (
            ir.Constant(words, [each] * BOTH) for each in (2**31 - 1, -(2**31), 0, 1)
        )
        found = cgutils.alloca_once_value(builder, none)
        least = cgutils.alloca_once_value(builder, highest)
        most = cgutils.alloca_once_value(builder, lowest)
        with _groups(builder, groups) as (n, _):
            step = builder.mul(n, ir.Constant(INT, 4 * BOTH))
            x = load(builder, builder.add(key, step), words)
            each = one if weight is None else load(builder, builder.add(weight, step), words)
            mask = builder.icmp_signed(">=", x, middle)
            counted = builder.select(mask, each, none)
            builder.store(builder.add(builder.load(found), counted), found)
            up, old = builder.select(mask, x, highest), builder.load(least)
            builder.store(builder.select(builder.icmp_signed("<", up, old), up, old), least)
            down, old = builder.select(mask, lowest, x), builder.load(most)
            builder.store(builder.select(builder.icmp_signed(">", down, old), down, old), most)
        store(builder, _reduced(builder, builder.load(least), "<"), ends)
        second = builder.add(ends, ir.Constant(INT, 4))
        store(builder, _reduced(builder, builder.load(most), ">"), second)
        total, lanes = word(0), builder.load(found)
        for n in range(BOTH):
            total = builder.add(total, builder.extract_element(lanes, word(n)))
        return builder.sext(total, INT)

    return build


@intrinsic
def split_lanes(context, key, groups, middle, ends):
    """Split int32 keys, in `groups` groups of `BOTH`; returns how many are at least `middle`.

    The lowest of those and the highest of the others are written to `ends`.
    """
    return types.int64(types.int64, types.int64, types.int32, types.int64), _split(weighted=False)


@intrinsic
def split_weights(context, key, weight, groups, middle, ends):
    """`split_lanes` that returns the sum of int32 weights, one for each key."""
    kind = types.int64(types.int64, types.int64, types.int64, types.int32, types.int64)
    return kind, _split(weighted=True)


@intrinsic
def mask_lanes(context, key, low):
    """One bit for each of 32 int32 keys: whether it is at least `low`."""

    def build(target, builder, signature, args):
        key, low = args
        low = _spread(builder, _WORDS, low)
        bits = ir.IntType(32)(0)
        for n in range(32 // LANE):
            here = builder.add(key, ir.Constant(INT, 4 * LANE * n))
            mask = builder.icmp_signed(">=", load(builder, here, _WORDS), low)
            byte = builder.zext(builder.bitcast(mask, ir.IntType(LANE)), ir.IntType(32))
            bits = builder.or_(bits, builder.shl(byte, ir.IntType(32)(LANE * n)))
        return bits

    return types.uint32(types.int64, types.int32), build


@intrinsic
def lowest_bit(context, word):
    """Place of the lowest bit that is set, as a place in an array."""

    def build(target, builder, signature, args):
        return builder.zext(builder.cttz(args[0], ir.Constant(ir.IntType(1), 0)), INT)

    return types.int64(types.uint32), build


def _reinterpret(before: Any, after: Any, kind: Any) -> Any:
    @intrinsic
    def reinterpret(context, value):
        def build(target, builder, signature, args):
            return builder.bitcast(args[0], kind)

        return after(before), build

    return reinterpret


_double_bits = _reinterpret(types.float64, types.int64, INT)
float_bits = _reinterpret(types.float32, types.int32, ir.IntType(32))
bits_float = _reinterpret(types.int32, types.float32, ir.FloatType())


@leaf
def recency_bucket(elapsed_ms, last):
    """floor(log2(1 + whole minutes)), at most `last`: the exponent of 1 + minutes.

    Thresholds are whole minutes, so the fraction of a minute changes nothing; doubles separate
    neighbouring milliseconds far beyond the last threshold.
    """
    minutes = max(float(elapsed_ms), 0.0) / 60_000.0
    return min((_double_bits(1.0 + minutes) >> 52) - 1023, last)
