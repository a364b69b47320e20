"""How a job behaves over its life: where it keeps its files, when it drains, whether it goes on."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError

CONTINUATIONS = ("requeue", "chain", "none")
PREFLIGHTS = ("off", "quick", "full")


@dataclass(frozen=True)
class JobConfig:
    run_dir: str | None = option(
        None, "--run-dir", help="folder for the job's files, seen by every node; default: a new one"
    )
    continue_with: str = option(
        "none",
        "--continue-with",
        choices=CONTINUATIONS,
        help="after the time limit or preemption: requeue this job, chain a new one, or end",
    )
    max_restarts: int = option(
        3,
        "--max-restarts",
        help="most restarts; a run without progress gets none, unless a node failed",
    )
    replicas: int = option(1, "--replicas", help="independent copies, as a job array")
    auth: bool = option(
        True, "--auth", off_flags=("--no-auth",), help="ask clients for a random key"
    )
    ready_timeout_s: float = option(
        3600.0, "--ready-timeout", help="seconds until the server must answer, once started"
    )
    job_drain_s: float = option(
        20.0, "--drain", help="seconds that running requests get before the job ends"
    )
    rank_timeout_s: float = option(
        60.0, "--rank-timeout", help="seconds without a sign of life after which a node is lost"
    )
    preflight: str = option(
        "quick",
        "--preflight",
        choices=PREFLIGHTS,
        help="check the nodes before the engine starts; full: with an all-reduce",
    )
    engine_command: str | None = option(
        None, "--engine-command", help="start this instead of `hpcserve serve`", metavar="COMMAND"
    )

    sbatch_template: str | None = option(
        None, "--sbatch-template", help="batch script template instead of the one in sbatch/"
    )

    def __post_init__(self) -> None:
        if self.continue_with not in CONTINUATIONS:
            raise ConfigError(
                f"continue_with {self.continue_with!r}; choose one of {', '.join(CONTINUATIONS)}"
            )
        if self.replicas < 1:
            raise ConfigError(f"replicas is {self.replicas}; it must be at least 1")
        if self.max_restarts < 0:
            raise ConfigError(f"max_restarts is {self.max_restarts}; it cannot be negative")
        for name in ("ready_timeout_s", "job_drain_s", "rank_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
