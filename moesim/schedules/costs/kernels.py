"""Time of compute kernels: dense and grouped products, passes over memory, host calls.

Every form is pure and broadcasts over leading axes. Rows are shaped ``[... rank]``, the other sizes end in an axis of
size 1. Forms are affine in the rows inside each norm and each tile, so that cutting the rows never lowers the sum:
a norm obeys the triangle inequality, and of two tiles the one that is cheaper per row serves both parts. A hard
ceiling over waves would break that, so a wave's ragged end enters as its mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from moesim.ground.units import Bytes

Size = Shaped[np.ndarray, "..."]
Time = Float[np.ndarray, "..."]
Params = Mapping[str, float]

ROW_TILES = (16, 64, 128)
"""Rows of a tile; those between lie above the lower envelope of these three wherever compute matters."""
PANELS = ((256, 1), (128, 1), (64, 1), (128, 4), (64, 4), (64, 16))
"""Columns of a tile and parts in which k is cut; wide tiles are not cut, as they are many only where n is large."""
FULL_TILE = 1 / 128 + 1 / 256
"""Operand elements read per multiplied pair in the tile that reaches the peak, 128 x 256."""
LOOKED_UP = 2**14
"""Whole numbers of rows below this are looked up in a table where there are more of them than this."""
RESULT = 2.0
"""Bytes of an element of a product's result: bf16."""


def fitting(array: Size, other: Size) -> Time | None:
    """Return an array as the place for a result of itself and another, if it is large enough; else None."""
    return array if np.broadcast_shapes(array.shape, other.shape) == array.shape else None


def norm(p: float, *times: Time) -> Time:
    """Join times that overlap imperfectly: (sum of time^p)^(1/p), without a power for p = 2 and 4.

    Examples
    --------
    >>> norm(2.0, np.array([3.0]), np.array([4.0]))
    array([5.])
    """
    joined: Time
    if p == 2.0:
        joined = np.sqrt(np.asarray(sum(time * time for time in times)))
    elif p == 4.0:
        joined = np.sqrt(norm(2.0, *(time * time for time in times)))
    else:
        joined = np.asarray(sum(time**p for time in times) ** (1 / p))
    return joined


def tile_rate(rows: int, columns: Size, params: Params, processors: int) -> Time:
    """Seconds one processor spends on a tile per unit of k: its work over its share of the peak, more if it is small.

    2 x rows x columns / (peak / processors) x (1 + thin x max(phi - 1, 0)),
    phi = (1/rows + 1/columns) / (1/128 + 1/256): operands read per multiplied pair, against the tile that reaches
    the peak.

    Examples
    --------
    >>> tile_rate(128, np.array([256.0]), {"peak": 2 * 128 * 256 * 100, "thin": 0.3}, 100)
    array([1.])
    """
    starved = np.maximum((1 / rows + 1 / columns) / FULL_TILE - 1, 0.0)
    rate: Time = columns * (2 * rows * processors / params["peak"]) * (1 + params["thin"] * starved)
    return rate


def warm_traffic(size: Size, params: Params) -> Time:
    """Time to move activations that the last kernel left partly in the cache.

    size x (hot / cache_bandwidth + (1 - hot) / bandwidth), hot = cache / (cache + size).

    Examples
    --------
    >>> warm_traffic(np.array([8.0]), {"cache": 0.0, "cache_bandwidth": 100.0, "bandwidth": 2.0})
    array([4.])
    >>> warm_traffic(np.array([8.0]), {"cache": 8.0, "cache_bandwidth": 8.0, "bandwidth": 2.0})
    array([2.5])
    """
    saved = 1 / params["bandwidth"] - 1 / params["cache_bandwidth"]
    cold: Time = size / params["bandwidth"]
    if params["cache"] == 0.0:
        return cold
    return cold - size * (params["cache"] * saved / (params["cache"] + size))


def throttled(tensor: Time, params: Params) -> Time:
    """Slow a long product down as the chip meets its power limit: tensor x (1 + throttle x tensor / (tensor + 1 ms)).

    Examples
    --------
    >>> throttled(np.array([1e-3]), {"throttle": 0.1})
    array([0.00105])
    """
    if params["throttle"] == 0.0:
        return tensor
    return tensor * (1 + params["throttle"] * tensor / (tensor + 1e-3))


def gemm(m: Size, n: Size, k: Size, *, stored: Bytes, operand: Bytes, params: Params, processors: int) -> Time:
    """A dense product takes its launch, and then the slower of tensor cores and memory, in the best of several tilings.

    launch + min over (columns, cuts) of norm_p(tensor, memory, panel)
           + (2 + operand) m k / quantize_bandwidth [operand < 2]

    tensor = throttled(min over rows of max(1, waves + tail) x (k / cuts x tile_rate + overhead) + split [cuts > 1])
    waves  = max(1, m / rows) x panels / processors,  panels = ceil(n / columns) x cuts
    memory = n k stored / bandwidth + warm(m k operand + 2 m n) + 8 m n cuts / cache_bandwidth [cuts > 1]
    panel  = n k stored / (panels x block_bandwidth)

    Weights are cold and every panel of them is streamed by one processor; partial results of a cut k are written and
    read back in fp32, and `split` is what adding them up takes besides.

    Functional form of docs/background/evidence.md, section 1 (roofline: Williams et al., CACM 52(4), 2009;
    tiles and waves: NVIDIA, Matrix Multiplication Background User's Guide).

    Parameters
    ----------
    m, n, k : sizes of the product
    stored, operand : bytes per element of the weights as stored, and of both operands as multiplied
    params : launch (s), peak (FLOP/s), bandwidth, cache_bandwidth, block_bandwidth, quantize_bandwidth (B/s),
        cache (B; 0 turns the term off), overhead (s per tile), split (s), throttle (0 turns the term off), tail
        (waves), thin, p
    processors : processors of the device

    Returns
    -------
    seconds; a product without rows takes its launch

    Examples
    --------
    >>> params = dict(launch=1.0, peak=2.0 * 128 * 256, bandwidth=1e9, cache_bandwidth=1e9, block_bandwidth=1e9,
    ...               quantize_bandwidth=1e9, cache=0.0, overhead=0.0, split=0.0, throttle=0.0, tail=0.0, thin=0.0,
    ...               p=2.0)
    >>> one = np.array([1.0])
    >>> gemm(128 * one, 256 * one, 10 * one, stored=0.0, operand=2.0, params=params, processors=1).round(3)
    array([11.])
    """
    weights = n * k * stored
    warm = warm_traffic(m * (k * operand + n * RESULT), params)
    best: Time | None = None
    for columns, cuts in PANELS:
        panels = np.ceil(n / columns) * cuts
        memory = warm + weights / params["bandwidth"]
        tensor = _dense_tensor(m, panels, k / cuts, columns, params, processors)
        if cuts > 1:
            memory = memory + m * (n * (8.0 * cuts / params["cache_bandwidth"]))
            tensor = tensor + params["split"]
        panel = weights / (panels * params["block_bandwidth"])
        joined = norm(params["p"], throttled(tensor, params), memory, panel)
        best = joined if best is None else np.minimum(best, joined)
    assert best is not None
    if operand < RESULT:
        best = best + m * (k * ((RESULT + operand) / params["quantize_bandwidth"]))
    return np.asarray(params["launch"] + best * (m > 0))


def _dense_tensor(m: Size, panels: Size, depth: Size, columns: int, params: Params, processors: int) -> Time:
    best: Time | None = None
    for rows in ROW_TILES:
        tile = depth * tile_rate(rows, np.array([float(columns)]), params, processors) + params["overhead"]
        waves = np.maximum(m / rows, 1.0) * (panels / processors)
        time = np.maximum(waves + params["tail"], 1.0) * tile
        best = time if best is None else np.minimum(best, time)
    assert best is not None
    return best


def gemm_loads(m: Size, n: Size, k: Size, *, stored: Bytes, params: Params) -> tuple[Time, Time]:
    """At least so long are the tensor cores (2 m n k / peak) and the memory (the weights, n k stored / bandwidth) busy.

    Activations may be in the cache and are left out. The larger of the two is the floor of `gemm`.

    Examples
    --------
    >>> two = np.array([2.0])
    >>> gemm_loads(two, two, two, stored=1.0, params={"peak": 4.0, "bandwidth": 2.0})
    (array([4.]), array([2.]))
    """
    return 2 * m * (n * k / params["peak"]), (m > 0) * (n * k * (stored / params["bandwidth"]))


def grouped(
    rows: Size,
    n: Size,
    k: Size,
    *,
    stored: Bytes,
    operand: Bytes,
    params: Params,
    processors: int,
    reread: Size | float = 1.0,
) -> Time:
    """A grouped product reads the weights of the experts that have rows, and pads each one's rows to tiles.

    launch + norm_p(tensor, memory, panel) + S (k operand + 2 n) / activation_bandwidth
           + A per_expert + slots x per_slot

    S, A   = sum of rows over slots, number of slots with rows
    tensor = throttled(max(tile, tiles x panels / processors + tail x tile)),  panels = ceil(n / columns)
    tiles  = sum over slots with rows of max(tile, min over h of (rows / h + pad) x (k x tile_rate(h) + overhead))
    memory = A n k stored / bandwidth
    panel  = n k stored / (panels x block_bandwidth)

    `tile` is the time of the smallest tile, `columns` the width that pads n least. Rows of an expert are ragged, so a
    tile of `pad` is lost per expert in the mean; each expert has its own best tile, so the form is a sum over slots.

    Functional form of docs/background/evidence.md, section 2 (fused MoE kernels: vLLM, SGLang, DeepGEMM).

    Parameters
    ----------
    rows : rows per slot, slots first
    n, k : sizes of each product
    stored, operand : bytes per element of the weights as stored, and of both operands as multiplied
    params : as for `gemm`, and activation_bandwidth (B/s), pad (tiles), per_expert, per_slot (s)
    processors : processors of the device
    reread : share of the products whose weights come from memory; the cache still has the others'

    Returns
    -------
    seconds; a rank without rows takes its launch

    Examples
    --------
    >>> params = dict(launch=1.0, peak=2.0 * 128 * 256, bandwidth=1e9, block_bandwidth=1e9, activation_bandwidth=1e9,
    ...               overhead=0.0, throttle=0.0, tail=0.0, thin=0.0, pad=0.5, p=2.0, per_expert=0.0, per_slot=0.0)
    >>> rows, n, k = np.array([[16.0], [32.0], [0.0]]), np.array([256.0]), np.array([8.0])  # a tile of 16 rows: 1 s
    >>> grouped(rows, n, k, stored=0.0, operand=2.0, params=params, processors=1).round(3)  # 1 + (1 + 0.5) + (2 + 0.5)
    array([5.])
    """
    columns = _best_width(n, params)
    panels = np.ceil(n / columns)
    tile_times = [k * tile_rate(h, columns, params, processors) + params["overhead"] for h in ROW_TILES]
    total, active, tiles = _over_slots(rows, tile_times, params["pad"])
    smallest = tile_times[0]
    weights = n * k * stored
    tensor = tiles * (panels / processors) + params["tail"] * smallest
    tensor = throttled(np.maximum(tensor, smallest, out=tensor), params)
    memory = active * (weights * reread / params["bandwidth"])
    time: Time = norm(params["p"], tensor, memory, weights / (panels * params["block_bandwidth"]))
    time += total * ((k * operand + n * RESULT) / params["activation_bandwidth"])
    time += active * params["per_expert"]
    time += len(rows) * params["per_slot"]
    time *= active > 0
    time += params["launch"]
    return time


def _over_slots(rows: Size, tile_times: list[Time], pad: float) -> tuple[Time, Time, Time]:
    """Sum over slots: rows, slots that have any, and the tiles' time on one panel of columns."""
    total = rows.sum(axis=0).astype(np.float64)
    active = np.add.reduce((rows > 0).view(np.int8), axis=0, dtype=np.int32).astype(np.float64)
    whole = np.issubdtype(rows.dtype, np.integer) and all(tile.size == 1 for tile in tile_times)
    most = int(rows.max()) if whole and rows.size > LOOKED_UP else LOOKED_UP
    if most < LOOKED_UP:
        table = _tiles(np.arange(most + 1.0), [tile.reshape(1) for tile in tile_times], pad)
        return total, active, np.add.reduce(table.take(rows), axis=0)
    return total, active, np.add.reduce(_tiles(rows.astype(np.float64), tile_times, pad), axis=0)


def _tiles(rows: Size, tile_times: list[Time], pad: float) -> Time:
    """Time of the tiles that one expert's rows take on one panel of columns, in its best tile."""
    best: Time | None = None
    for h, tile in zip(ROW_TILES, tile_times, strict=True):
        line = rows * (tile / h)
        line += pad * tile
        best = line if best is None else np.minimum(best, line, out=best)
    assert best is not None
    np.maximum(best, tile_times[0], out=best)
    best *= rows > 0
    return best


def _best_width(n: Size, params: Params) -> Size:
    """Choose the tile's columns by n alone: padding of n times how much narrow tiles starve."""
    widths = np.array([256.0, 128.0, 64.0]).reshape(-1, *[1] * n.ndim)
    starved = np.maximum((1 / 128 + 1 / widths) / FULL_TILE - 1, 0.0)
    waste = np.ceil(n / widths) * widths * (1 + params["thin"] * starved)
    chosen: Size = widths.reshape(-1)[np.argmin(waste, axis=0)]
    return chosen


def grouped_loads(
    total: Size, active: Size, n: Size, k: Size, *, stored: Bytes, operand: Bytes, params: Params
) -> tuple[Time, Time]:
    """At least so long are the tensor cores and the memory busy, each with what every rank pays besides.

    2 S n k / peak and A n k stored / bandwidth, and to both launch + S (k operand + 2 n) / activation_bandwidth.

    `total` S and `active` A are the rows and the slots that have any. The larger of the two is the floor of `grouped`.

    Examples
    --------
    >>> two = np.array([2.0])
    >>> fit = {"peak": 4.0, "bandwidth": 2.0, "launch": 1.0, "activation_bandwidth": 6.0}
    >>> grouped_loads(np.array([3.0]), np.array([1.0]), two, two, stored=1.0, operand=1.0, params=fit)
    (array([10.]), array([6.]))
    """
    both = params["launch"] + total * ((k * operand + n * RESULT) / params["activation_bandwidth"])
    return both + total * (2 * n * k / params["peak"]), both + active * (n * k * (stored / params["bandwidth"]))


def grouped_terms(
    total: Size,
    active: Size,
    n: Size,
    k: Size,
    *,
    stored: Bytes,
    operand: Bytes,
    params: Params,
    processors: int,
    reread: Size | float = 1.0,
) -> tuple[Time, ...]:
    """Find what `grouped` takes at least of each of its terms, all linear in the rows S and the active slots A.

    outside the norm:    launch + S (k operand + 2 n) / activation_bandwidth + A (per_expert + per_slot)
    memory:              A n k stored / bandwidth
    tensor, few rows:    A tile panels / processors
    tensor, many rows:   (S min over h of tile(h) / h + A pad tile) panels / processors

    `tile` is the time of the smallest tile. `least_grouped` puts them together.

    Parameters
    ----------
    total, active : S and A: rows, and slots that have any
    others : as for `grouped`

    Examples
    --------
    >>> params = dict(launch=1.0, peak=2.0 * 128 * 256, bandwidth=1e9, block_bandwidth=1e9, activation_bandwidth=1e9,
    ...               overhead=0.0, throttle=0.0, tail=0.0, thin=0.0, pad=0.5, p=2.0, per_expert=0.0, per_slot=0.0)
    >>> sizes = np.array([48.0]), np.array([2.0]), np.array([256.0]), np.array([8.0])  # as in `grouped`: 5 s
    >>> terms = grouped_terms(*sizes, stored=0.0, operand=2.0, params=params, processors=1)
    >>> least_grouped(terms, params).round(2)
    array([5.])
    """
    columns = _best_width(n, params)
    panels = np.ceil(n / columns)
    tile_times = [k * tile_rate(h, columns, params, processors) + params["overhead"] for h in ROW_TILES]
    smallest = tile_times[0]
    a_row: Time = np.minimum.reduce([time / h for time, h in zip(tile_times, ROW_TILES, strict=True)])
    outside = params["launch"] + total * ((k * operand + n * RESULT) / params["activation_bandwidth"])
    return (
        outside + active * (params["per_expert"] + params["per_slot"]),
        active * (n * k * (stored * reread / params["bandwidth"])),
        active * (smallest * (panels / processors)),
        (total * a_row + active * (params["pad"] * smallest)) * (panels / processors),
    )


def least_grouped(terms: Sequence[Time], params: Params) -> Time:
    """Put the terms of a grouped product together: outside + norm_p(throttled(larger tensor), memory).

    Convex and growing in each, so that at terms averaged over ranks and draws it is at most the average of times.
    """
    outside, memory, few, many = terms
    return np.asarray(outside + norm(params["p"], throttled(np.maximum(few, many), params), memory))


def elementwise(traffic: Size, *, params: Params) -> Time:
    """A pass over memory takes its launch and its traffic at the memory's rate, or in part at the cache's.

    launch + traffic x (hot / cache_bandwidth + (1 - hot) / bandwidth), hot = cache / (cache + traffic)

    Functional form of docs/background/evidence.md, section 2 (element-wise passes run at HBM speed) and section 10 (a
    CPU's run at its cache's while they fit).

    Parameters
    ----------
    traffic : bytes read plus written
    params : launch (s), bandwidth, cache_bandwidth (B/s), cache (B; 0 turns the term off)

    Examples
    --------
    >>> elementwise(np.array([0.0, 6.0]), params={"launch": 1.0, "bandwidth": 2.0, "cache": 0.0})
    array([1., 4.])
    >>> elementwise(np.array([6.0]), params={"launch": 1.0, "bandwidth": 2.0, "cache": 6.0, "cache_bandwidth": 6.0})
    array([3.])
    """
    if params["cache"] == 0.0:
        return params["launch"] + traffic / params["bandwidth"]
    return params["launch"] + warm_traffic(traffic, params)


def elementwise_loads(traffic: Size, *, params: Params) -> tuple[Time]:
    """At least so long is the memory busy: traffic / bandwidth, or / cache_bandwidth where bytes may be in the cache.

    Examples
    --------
    >>> elementwise_loads(np.array([6.0]), params={"bandwidth": 2.0, "cache": 0.0})
    (array([3.]),)
    >>> elementwise_loads(np.array([6.0]), params={"bandwidth": 2.0, "cache": 1.0, "cache_bandwidth": 6.0})
    (array([1.]),)
    """
    if params["cache"] == 0.0:
        return (traffic / params["bandwidth"],)
    return (traffic / max(params["bandwidth"], params["cache_bandwidth"]),)


def host(calls: Size, *, params: Params) -> Time:
    """Host calls that the device waits for take a fixed time each: calls x call; it is its own floor.

    Parameters
    ----------
    calls : how many
    params : call (s)

    Examples
    --------
    >>> host(np.array([3.0]), params={"call": 2.0})
    array([6.])
    """
    return calls * params["call"]
