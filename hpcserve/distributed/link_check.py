"""Before weights load: does every rank reach the next, how fast, and do all sum to the same?"""

from __future__ import annotations

import os
import socket
import time

import torch
import torch.distributed as dist

from hpcserve.distributed.topology import Place
from hpcserve.errors import EngineStartError
from hpcserve.log import get_logger

_log = get_logger(__name__)

_BYTES_GPU = 64 << 20
_BYTES_CPU = 1 << 20
#: A link this many times slower than the fastest is worth a warning.
_SLOW = 4.0


def check_links(
    ranks: tuple[int, ...],
    place: Place,
    device: torch.device,
    control: dist.ProcessGroup | None,
) -> None:
    """Called by all ranks of a replica together; the first one logs what was found.

    ranks: their global numbers, in the order of the default group.  control: them, on the host.
    Raises EngineStartError that names the rank whose part of a sum is wrong, its node and interface.
    """
    num_bytes = _BYTES_GPU if device.type == "cuda" else _BYTES_CPU
    size, own = len(ranks), ranks.index(place.rank)
    names = _names(place, size, control)
    _check_sum(ranks, own, device, names)
    speed = _ring_bytes_per_s(num_bytes, size, own, device)
    reduced = _all_reduce_bytes_per_s(num_bytes, size, device)
    speeds = torch.zeros(size, dtype=torch.float64, device=device)
    speeds[own] = speed
    dist.all_reduce(speeds)
    if own:
        return
    per_link = speeds.tolist()
    slowest = min(range(size), key=per_link.__getitem__)
    level = _log.warning if per_link[slowest] * _SLOW < max(per_link) else _log.info
    level(
        "links: all-reduce over %d ranks %.2f GB/s; slowest neighbours %s -> %s %.2f GB/s, "
        "fastest %.2f GB/s",
        size,
        reduced / 1e9,
        names[slowest],
        names[(slowest + 1) % size],
        per_link[slowest] / 1e9,
        max(per_link) / 1e9,
    )


def _names(place: Place, size: int, control: dist.ProcessGroup | None) -> list[str]:
    """What each rank is called in messages: its number, node and network interface."""
    interface = os.environ.get("NCCL_SOCKET_IFNAME", "?").removeprefix("=")
    names = [""] * size
    own = f"rank {place.rank} on {socket.gethostname()} ({interface})"
    dist.all_gather_object(names, own, group=control)
    return names


def _check_sum(ranks: tuple[int, ...], own: int, device: torch.device, names: list[str]) -> None:
    """Each rank adds its number in a place of its own, so that the sum tells whose is missing."""
    parts = torch.zeros(len(ranks), dtype=torch.int64, device=device)
    parts[own] = ranks[own] + 1
    dist.all_reduce(parts)
    wrong = [i for i, found in enumerate(parts.tolist()) if found != ranks[i] + 1]
    if wrong:
        raise EngineStartError(
            f"an all-reduce gave a wrong sum: the part of {names[wrong[0]]} did not arrive; check "
            "that network (NCCL_DEBUG=INFO shows which interfaces NCCL takes)"
        )


def _ring_bytes_per_s(num_bytes: int, size: int, own: int, device: torch.device) -> float:
    """Speed at which this rank's data reaches the next."""
    out = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    taken = torch.empty_like(out)
    seconds = 0.0
    for _ in range(2):  # the first one connects
        _settle(device)
        started = time.perf_counter()
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, out, (own + 1) % size),
                dist.P2POp(dist.irecv, taken, (own - 1) % size),
            ]
        )
        for work in works:
            work.wait()
        _settle(device)
        seconds = time.perf_counter() - started
    return num_bytes / seconds


def _all_reduce_bytes_per_s(num_bytes: int, size: int, device: torch.device) -> float:
    """Bus bandwidth, as NCCL's tests define it: 2 (n - 1) / n of the bytes pass each rank."""
    data = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
    seconds = 0.0
    for _ in range(2):
        _settle(device)
        started = time.perf_counter()
        dist.all_reduce(data)
        _settle(device)
        seconds = time.perf_counter() - started
    return 2 * (size - 1) / size * num_bytes / seconds


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
