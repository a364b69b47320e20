"""What a torch profiler trace says of its GPU: how long it was busy, and with which kernels."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpcserve.errors import InputError

#: Categories of what runs on a GPU.
_ON_GPU = frozenset(("kernel", "gpu_memcpy", "gpu_memset"))
_GZIP_MAGIC = b"\x1f\x8b"


class _Event(msgspec.Struct):
    """Of Chrome's trace format, the fields that are looked at. ts, dur: microseconds."""

    ph: str = ""
    cat: str | None = None
    name: str | None = None
    ts: float = 0.0
    dur: float = 0.0


class _Device(msgspec.Struct):
    name: str = ""


class _Trace(msgspec.Struct):
    """torch leaves deviceProperties empty where there is no GPU."""

    traceEvents: list[_Event]
    deviceProperties: list[_Device] = []


@dataclass(frozen=True)
class KernelTime:
    """All runs of one kernel, or of one kind of copy.

    share: of the time of all of them, which exceeds the busy time where streams overlap.
    """

    name: str
    count: int
    total_us: float
    share: float

    @property
    def mean_us(self) -> float:
        return self.total_us / self.count


@dataclass(frozen=True)
class GpuTrace:
    """device: "" where the file names none.  span_s: from the first kernel's or copy's start to the
    last one's end.  busy_s: when at least one ran.  kernels: the longest in total first."""

    device: str
    span_s: float
    busy_s: float
    kernels: list[KernelTime]

    @property
    def busy_share(self) -> float:
        return self.busy_s / self.span_s if self.span_s else 1.0

    @property
    def num_events(self) -> int:
        return sum(one.count for one in self.kernels)

    @classmethod
    def load(cls, path: Path) -> GpuTrace:
        """Read a trace, plain or gzip.

        Raises InputError for a file that cannot be read, is no trace, or has nothing of a GPU.
        """
        trace = _read(path)
        events = [one for one in trace.traceEvents if one.ph == "X" and one.cat in _ON_GPU]
        if not events:
            raise InputError(
                f"{path} has {len(trace.traceEvents)} events and none of a GPU: it was taken of an "
                "engine on a CPU, or of no step"
            )
        spans = sorted((one.ts, one.ts + one.dur) for one in events)
        last = max(end for _, end in spans)
        return cls(
            device=trace.deviceProperties[0].name if trace.deviceProperties else "",
            span_s=(last - spans[0][0]) / 1e6,
            busy_s=sum(end - start for start, end in union(spans)) / 1e6,
            kernels=_by_name(events),
        )


def union(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """What (start, end) pairs, sorted by start, cover together: pairs that do not touch."""
    current: tuple[float, float] | None = None
    for start, end in spans:
        if current is None:
            current = start, end
        elif start <= current[1]:
            current = current[0], max(current[1], end)
        else:
            yield current
            current = start, end
    if current is not None:
        yield current


def together(name: str, kernels: list[KernelTime]) -> KernelTime:
    """Several as one."""
    return KernelTime(
        name,
        sum(one.count for one in kernels),
        sum(one.total_us for one in kernels),
        sum(one.share for one in kernels),
    )


def _by_name(events: list[_Event]) -> list[KernelTime]:
    found: dict[str, tuple[int, float]] = {}
    for event in events:
        count, total_us = found.get(event.name or "", (0, 0.0))
        found[event.name or ""] = count + 1, total_us + event.dur
    all_us = sum(total_us for _, total_us in found.values())
    kernels = [
        KernelTime(name, count, total_us, total_us / all_us if all_us else 0.0)
        for name, (count, total_us) in found.items()
    ]
    return sorted(kernels, key=lambda one: (-one.total_us, one.name))


def _read(path: Path) -> _Trace:
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a broken gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read the trace {path}: {error.strerror}") from error
    try:
        # The format has two forms: an object, and its list of events alone.
        if data.lstrip()[:1] == b"[":
            return _Trace(msgspec.json.decode(data, type=list[_Event]))
        return msgspec.json.decode(data, type=_Trace)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no trace of torch's profiler: {error}") from error
