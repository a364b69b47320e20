"""Data sheets of GPUs: memory, bandwidth and dense 16-bit arithmetic, as their makers state them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcserve.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """memory_bytes: what a process can have.  bandwidth: bytes/s.  flops: bf16 or fp16, dense.

    link_bytes_s: one direction, to the other GPUs of the node.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float
    link_bytes_s: float


def _gpu(name: str, gib: float, tb_s: float, tflops: float, link_gb_s: float) -> Gpu:
    return Gpu(name, int(gib * GIB), tb_s * 1e12, tflops * 1e12, link_gb_s * 1e9)


GPUS = {
    one.name: one
    for one in (
        _gpu("v100-32", 31.7, 0.9, 125, 150),
        _gpu("a10g", 22.3, 0.6, 70, 32),
        _gpu("l4", 22.3, 0.3, 121, 32),
        _gpu("l40s", 44.5, 0.864, 362, 32),
        _gpu("a100-40", 39.4, 1.555, 312, 300),
        _gpu("a100", 79.2, 2.039, 312, 300),
        _gpu("h100", 79.2, 3.35, 989, 450),
        _gpu("gh200", 94.5, 4.0, 989, 450),
        _gpu("h20", 95.1, 4.0, 148, 450),
        _gpu("h200", 139.8, 4.8, 989, 450),
        _gpu("b200", 178.3, 8.0, 2250, 900),
        _gpu("gb200", 184.0, 8.0, 2500, 900),
    )
}


def gpu(name: str) -> Gpu:
    """By name, in any case and as drivers write it; raises ConfigError that lists the known ones."""
    found = recognized(name)
    if found is None:
        raise ConfigError(f"unknown GPU {name!r}; known: {', '.join(GPUS)}")
    return found


def recognized(name: str) -> Gpu | None:
    """The GPU that is meant by h100, A100-40 or nvidia_a100-sxm4-40gb; None for any other."""
    words = [one for one in re.split(r"[-_ ]+", name.lower()) if one not in ("nvidia", "tesla")]
    if not words or "mig" in words:  # a slice of a GPU is another thing
        return None
    size = next((one.removesuffix("gb") for one in words if one.endswith("gb")), "")
    meant = ("-".join(words), f"{words[0]}-{size}", words[0])
    return next((GPUS[one] for one in meant if one in GPUS), None)
