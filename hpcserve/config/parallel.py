"""How many GPUs, and who does what on them: the numbers; `distributed/topology.py` the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class ParallelConfig:
    """Total GPUs = TP x PP x DP; EP divides the tensor-parallel group."""

    tp_size: int = option(
        1, "--tp", "-tp", "--tp-size", "--tensor-parallel-size", help="GPUs that split each layer"
    )
    pp_size: int = option(
        1, "--pp", "-pp", "--pp-size", "--pipeline-parallel-size", help="stages of layers"
    )
    dp_size: int = option(1, "--dp", "-dp", "--dp-size", "--data-parallel-size", help="replicas")
    ep_size: int = option(
        1,
        "--ep",
        "-ep",
        "--ep-size",
        "--expert-parallel-size",
        help="groups that split the experts",
    )

    nnodes: int = option(
        1, "--nnodes", help="nodes that run the engine together; in a SLURM job set by the launcher"
    )
    node_rank: int = option(0, "--node-rank", help="which of them this one is; 0 is the head")
    dist_init_addr: str | None = option(
        None,
        "--dist-init-addr",
        help="address of the head at which the nodes meet",
        metavar="HOST:PORT",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.node_rank < self.nnodes:
            raise ConfigError(
                f"node_rank {self.node_rank} is not in 0..nnodes-1 = {self.nnodes - 1}"
            )
        if self.nnodes > 1 and self.dist_init_addr is None:
            raise ConfigError(f"nnodes {self.nnodes} needs dist_init_addr, where the nodes meet")
        for name in ("tp_size", "pp_size", "dp_size", "ep_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tp_size % self.ep_size:
            raise ConfigError(
                f"ep_size {self.ep_size} does not divide tp_size {self.tp_size}; "
                f"valid: {', '.join(str(n) for n in divisors(self.tp_size))}"
            )

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size * self.dp_size


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
