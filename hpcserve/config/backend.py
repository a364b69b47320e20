"""What the engine runs on."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option

DEVICES = ("auto", "cuda", "cpu")


@dataclass(frozen=True)
class BackendConfig:
    device: str = option(
        "auto", "--device", choices=DEVICES, help="auto: a GPU if there is one, else the CPU"
    )
    attention_backend: str = option(
        "auto",
        "--attention-backend",
        help="a module of hpcserve/attention; auto: the fastest that works here",
        metavar="NAME",
    )
    cpu_threads: int | None = option(
        None,
        "--cpu-threads",
        help="torch threads on a CPU; default: all cores but one, at least one",
    )
