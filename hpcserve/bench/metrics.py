"""From the records of a run to its figures. docs/benchmarking.md defines each of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from hpcserve.bench.goodput import Goodput
from hpcserve.bench.percentiles import distribution
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.roofline import Hardware, ModelCost
from hpcserve.bench.timing import RequestTiming

Figures = dict[str, Any]

#: More groups than this are parts of a workload (prefixes), not kinds of requests to be compared.
_MAX_GROUPS = 16
#: The share of a run at either end that the steady throughput leaves out.
_RAMP = 0.1


def figures_of(
    requests: list[BenchRequest],
    records: list[RequestRecord],
    *,
    goodput: Goodput | None = None,
    cost: ModelCost | None = None,
    hardware: Hardware | None = None,
) -> Figures:
    """All figures of one run. Times are milliseconds where the name ends with _ms, else seconds."""
    good = [RequestTiming.of(one, requests[one.index]) for one in records if one.ok]
    begin = min((one.sent_s for one in records if one.sent_s >= 0), default=0.0)
    duration = max((one.end_s for one in records), default=0.0) - begin
    figures: Figures = {"duration_s": duration, **_counts(records, good)}
    figures |= _throughputs(good, begin, duration)
    figures |= _latencies(good)
    figures["mean_concurrency"] = sum(one.e2e_s for one in good) / duration if duration else 0.0
    figures["peak_concurrency"] = peak_open(records)
    if goodput is not None and duration:
        figures["goodput_per_s"] = sum(map(goodput.keeps, good)) / duration
    figures["cache_hit_rate"] = _hit_rate(good)
    if cost is not None:
        figures |= _efficiency(good, duration, cost, hardware or Hardware())
    groups = {str(one.group) for one in good if one.group is not None}
    if 1 < len(groups) <= _MAX_GROUPS:
        figures["groups"] = {
            name: _latencies([one for one in good if str(one.group) == name])
            for name in sorted(groups)
        }
    return figures


def peak_open(records: list[RequestRecord]) -> int:
    """Most requests that were open at the same time."""
    events = [(one.sent_s, 1) for one in records if one.sent_s >= 0]
    events += [(one.end_s, -1) for one in records if one.sent_s >= 0]
    # At equal times the end comes first: the stream was free before it was used again.
    level = peak = 0
    for _, change in sorted(events):
        level += change
        peak = max(peak, level)
    return peak


def _counts(records: list[RequestRecord], good: list[RequestTiming]) -> Figures:
    errors = Counter(one.error for one in records if one.error)
    first = next((one for one in records if one.error), None)
    return {
        "num_requests": len(records),
        "num_ok": len(good),
        "num_errors": sum(errors.values()),
        "errors": dict(errors),
        "first_error": f"{first.error}: {first.error_text}" if first else "",
        "num_short": sum(one.is_short for one in good),
        "prompt_tokens": sum(one.num_prompt for one in good),
        "output_tokens": sum(one.num_output for one in good),
    }


def _throughputs(good: list[RequestTiming], begin: float, duration: float) -> Figures:
    if not duration:
        return {"output_tok_s": 0.0, "total_tok_s": 0.0, "requests_per_s": 0.0}
    output = sum(one.num_output for one in good)
    total = output + sum(one.num_prompt for one in good)
    figures = {
        "output_tok_s": output / duration,
        "total_tok_s": total / duration,
        "requests_per_s": len(good) / duration,
    }
    chunks = np.concatenate([one.chunk_s for one in good]) if good else np.zeros(0)
    if len(chunks):
        low, high = begin + _RAMP * duration, begin + (1 - _RAMP) * duration
        steady = int(np.count_nonzero((chunks >= low) & (chunks < high)))
        per_chunk = output / len(chunks)
        figures["steady_output_tok_s"] = steady * per_chunk / (high - low)
        figures["tokens_per_chunk"] = per_chunk
    return figures


def _latencies(good: list[RequestTiming]) -> Figures:
    gaps = [one.gaps_s for one in good if len(one.chunk_s) > 1]
    series: dict[str, Any] = {
        "ttft_ms": [one.ttft_s for one in good if one.ttft_s is not None],
        "itl_ms": np.concatenate(gaps) if gaps else [],
        "tpot_ms": [one.tpot_s for one in good if one.tpot_s is not None],
        "e2e_ms": [one.e2e_s for one in good],
        "send_lag_ms": [one.lag_s for one in good],
    }
    return {name: distribution(np.asarray(values) * 1e3) for name, values in series.items()}


def _hit_rate(good: list[RequestTiming]) -> float | None:
    """Share of prompt tokens that came from the cache; None where the server does not tell."""
    telling = [one for one in good if one.num_cached is not None]
    prompt = sum(one.num_prompt for one in telling)
    return sum(one.num_cached or 0 for one in telling) / prompt if prompt else None


def _efficiency(
    good: list[RequestTiming], duration: float, cost: ModelCost, hardware: Hardware
) -> Figures:
    """MFU over the whole run, and MBU of its mean decode step (streaming only)."""
    flops = sum(cost.flops(one.num_prompt, one.num_cached or 0, one.num_output) for one in good)
    figures: Figures = {"mfu": flops / (duration * hardware.peak) if duration else 0.0}
    decoding = [one for one in good if one.tpot_s is not None]
    decode_s = sum(one.decode_s for one in decoding)
    if decode_s:
        # A request decodes for decode_s: so many run together on average while any of them does.
        batch_size = decode_s / _covered_s(decoding)
        tokens = sum(one.num_output - 1 for one in decoding)
        context = sum((one.num_prompt + one.num_output / 2) * one.decode_s for one in decoding)
        step_s = decode_s / tokens
        bytes_read = cost.decode_bytes(batch_size, context / decode_s)
        figures["mbu"] = bytes_read / (step_s * hardware.bandwidth)
        figures["mean_decode_batch"] = batch_size
        floor_s = cost.decode_floor_s(batch_size, context / decode_s, hardware)
        figures["decode_floor_ms"] = floor_s * 1e3
    return figures


def _covered_s(decoding: list[RequestTiming]) -> float:
    """Seconds in which at least one request decoded."""
    covered = 0.0
    reached = -np.inf
    for begin, end in sorted((float(one.chunk_s[0]), float(one.chunk_s[-1])) for one in decoding):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered
