"""Which requests run together, and how much work a step may carry."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError

POLICIES = ("fcfs", "lpm", "priority")


@dataclass(frozen=True)
class SchedulerConfig:
    max_running_requests: int = option(
        1024, "--max-running-requests", "--max-num-seqs", help="requests that decode together"
    )
    chunked_prefill_size: int = option(
        8192,
        "--chunked-prefill-size",
        "--max-num-batched-tokens",
        help="token budget of one step: decodes first, then chunks of prompts",
    )
    target_itl: float | None = option(
        None,
        "--target-itl",
        help="milliseconds between a stream's tokens that prompts should not exceed; "
        "default: none, for the highest throughput",
        metavar="MS",
    )
    schedule_policy: str = option(
        "fcfs",
        "--schedule-policy",
        "--scheduling-policy",
        choices=POLICIES,
        help="order of waiting requests: first come, longest cached prefix, or priority (high first)",
    )
    max_queued_requests: int | None = option(
        None, "--max-queued-requests", help="refuse (503) when so many wait; default: no limit"
    )
    enable_overlap: bool | None = option(
        None,
        "--enable-overlap-schedule",
        off_flags=("--disable-overlap-schedule",),
        help="prepare step k+1 while step k runs; default: on a GPU yes, on a CPU no",
    )
    random_seed: int = option(
        0, "--random-seed", "--seed", help="seeds requests that bring no seed, and dummy weights"
    )

    def __post_init__(self) -> None:
        if self.schedule_policy not in POLICIES:
            raise ConfigError(
                f"schedule_policy {self.schedule_policy!r}; choose one of {', '.join(POLICIES)}"
            )
        for name in ("max_running_requests", "chunked_prefill_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.target_itl is not None and not self.target_itl > 0:
            raise ConfigError(f"target_itl is {self.target_itl}; it must be more than 0 ms")
        if self.max_queued_requests is not None and self.max_queued_requests < 1:
            raise ConfigError(f"max_queued_requests is {self.max_queued_requests}; at least 1")
