"""The threshold of top-k, top-p and min-p of a row, without sorting: exact search by counting.

One program a row, so that its sums have one order whatever the batch is. The threshold is the
largest value t with count(x >= t) >= k, or with mass(x >= t) >= p * total. It is searched by
narrowing a bracket [low, high): each pass over the values measures several pivots at once.
The first pass tries fixed distances from the maximum, the next ones split the bracket evenly,
by turns in value (fast where values are spread evenly) and in the integers whose order is that
of the floats (which bounds the number of passes). Once the bracket holds few values they are
copied to a scratch row, and the last passes read only that. Each pass also finds the least and
the largest value of its bracket, which ends the search early where many values are equal. The
search ends when the bracket holds one element or one representable value: it is exact, and values
equal to the threshold are all kept. Selection by counting is common on GPUs; Alabi et al.,
2012, "Fast k-selection algorithms for graphics processors", compare its relatives.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _key(x):
    """int64 whose order is that of the fp32 values."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _value(key):
    """The fp32 of a key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _no_nan(x):
    """-inf for NaN: beside it a maximum may be that of the padding, which is no token."""
    return tl.where(x == x, x, -float("inf"))


@triton.jit
def _load(ptr, index, size, factor):
    """Scaled values; adding zero makes -0 and 0, which are equal, one key."""
    x = tl.load(ptr + index, mask=index < size, other=-float("inf")).to(tl.float32)
    return _no_nan(x * factor + 0.0)


@triton.jit
def _measure(ptr, size, factor, top, low, high, pivots, PIVOTS: tl.constexpr, BLOCK: tl.constexpr):
    """(count int32, mass fp32) of the values x >= pivot, for each pivot, where mass is
    exp(x - top); and the least and the largest value of the bracket [low, high)."""
    floor = _value(low)
    ceiling = _value(high)
    counts = tl.zeros([PIVOTS, BLOCK], tl.int32)
    masses = tl.zeros([PIVOTS, BLOCK], tl.float32)
    least = tl.full([BLOCK], float("inf"), tl.float32)
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = _load(ptr, index, size, factor)
        weight = tl.exp(x - top)
        above = x[None, :] >= pivots[:, None]
        counts += above.to(tl.int32)
        masses += tl.where(above, weight[None, :], 0.0)
        inside = (x >= floor) & (x < ceiling) & (index < size)
        least = tl.minimum(least, tl.where(inside, x, float("inf")))
        most = tl.maximum(most, tl.where(inside, x, -float("inf")))
    return (
        tl.sum(counts, axis=1),
        tl.sum(masses, axis=1),
        tl.min(least, axis=0),
        tl.max(most, axis=0),
    )


@triton.jit
def _pass(
    ptr,
    size,
    factor,
    top,
    low,
    high,
    count_low,
    count_high,
    mass_low,
    mass_high,
    base_count,
    base_mass,
    pivots,
    target,
    BY_COUNT: tl.constexpr,
    PIVOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Measure pivots and narrow the bracket: enough lies at or above low, too little at high.

    base_count, base_mass: what lies above the values that are read.
    """
    counts, masses, least, most = _measure(ptr, size, factor, top, low, high, pivots, PIVOTS, BLOCK)
    counts += base_count
    masses += base_mass
    if BY_COUNT:
        enough = counts.to(tl.float32) >= target
    else:
        enough = masses >= target
    keys = _key(pivots)
    # No value lies between the old ends and the extremes, so these have the ends' counts.
    low = tl.maximum(low, _key(least))
    high = tl.minimum(high, _key(most) + 1)
    low = tl.maximum(low, tl.max(tl.where(enough, keys, low), axis=0))
    high = tl.minimum(high, tl.min(tl.where(enough, high, keys), axis=0))
    # Counts and masses fall as pivots rise, so the closest belong to the new ends.
    count_low = tl.minimum(count_low, tl.min(tl.where(enough, counts, 0x7FFFFFFF), axis=0))
    count_high = tl.maximum(count_high, tl.max(tl.where(enough, 0, counts), axis=0))
    mass_low = tl.minimum(mass_low, tl.min(tl.where(enough, masses, float("inf")), axis=0))
    mass_high = tl.maximum(mass_high, tl.max(tl.where(enough, 0.0, masses), axis=0))
    return low, high, count_low, count_high, mass_low, mass_high


@triton.jit
def _split(low, high, turn, PIVOTS: tl.constexpr):
    """Pivots that divide the bracket evenly: in value on even turns, in keys on odd ones."""
    step = tl.arange(0, PIVOTS) + 1
    by_key = low + (high - low) * step.to(tl.int64) // (PIVOTS + 1)
    low_value = _value(low)
    width = (_value(high) - low_value) / (PIVOTS + 1)
    by_value = _key(low_value + width * step.to(tl.float32))
    usable = (turn % 2 == 0) & (low_value > -float("inf"))
    keys = tl.where((by_key * 0 + usable.to(tl.int64)) > 0, by_value, by_key)
    return _value(tl.minimum(tl.maximum(keys, low), high - 1))


@triton.jit
def _compact(ptr, size, factor, low, high, scratch_ptr, BLOCK: tl.constexpr):
    """Copy the values of [low, high) to scratch, in order; returns how many."""
    floor = _value(low)
    ceiling = _value(high)
    written = 0
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = _load(ptr, index, size, factor)
        keep = (x >= floor) & (x < ceiling) & (index < size)
        found = tl.sum(keep.to(tl.int32), axis=0)
        if found > 0:
            place = written + tl.cumsum(keep.to(tl.int32), axis=0) - 1
            tl.store(scratch_ptr + place, x, mask=keep)
        written += found
    return written


@triton.jit
def search(
    ptr,
    size,
    factor,
    top,
    total,
    low,
    count_low,
    target,
    scratch_ptr,
    BY_COUNT: tl.constexpr,
    CAPACITY: tl.constexpr,
    PIVOTS: tl.constexpr,
    FIRST_PIVOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The threshold's key, and count and mass at or above it, for values ptr[0:size] * factor.

    low: a key known to have enough, with its count_low and mass `total`. top: the maximum.
    """
    high = _key(top) + 1
    # Tensors from the start, since they change in branches and loops.
    count_high = count_low * 0
    turn = count_low * 0
    mass_low = total
    mass_high = total * 0.0
    if count_low > CAPACITY:
        distance = 0.25 * tl.exp2(tl.arange(0, FIRST_PIVOTS).to(tl.float32))
        pivots = tl.maximum(top - distance, _value(low))
        low, high, count_low, count_high, mass_low, mass_high = _pass(
            ptr, size, factor, top, low, high, count_low, count_high, mass_low, mass_high,
            0, 0.0, pivots, target, BY_COUNT, FIRST_PIVOTS, BLOCK,
        )  # fmt: skip
    while (high - low > 1) & (count_low - count_high > CAPACITY):
        pivots = _split(low, high, turn, PIVOTS)
        low, high, count_low, count_high, mass_low, mass_high = _pass(
            ptr, size, factor, top, low, high, count_low, count_high, mass_low, mass_high,
            0, 0.0, pivots, target, BY_COUNT, PIVOTS, BLOCK,
        )  # fmt: skip
        turn += 1
    if (high - low > 1) & (count_low - count_high > 1):
        found = _compact(ptr, size, factor, low, high, scratch_ptr, BLOCK)
        # Other threads of this program read what these wrote.
        tl.debug_barrier()
        base_count = count_high
        base_mass = mass_high
        turn = count_low * 0
        while (high - low > 1) & (count_low - count_high > 1):
            pivots = _split(low, high, turn, PIVOTS)
            low, high, count_low, count_high, mass_low, mass_high = _pass(
                scratch_ptr, found, 1.0, top, low, high, count_low, count_high, mass_low,
                mass_high, base_count, base_mass, pivots, target, BY_COUNT, PIVOTS, BLOCK,
            )  # fmt: skip
            turn += 1
        tl.debug_barrier()
    return low, count_low, mass_low
