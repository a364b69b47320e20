"""How many GPUs, and who does what on them: the numbers; `distributed/topology.py` the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError

#: Modules of layers/expert_dispatch.
MOE_DISPATCHES = ("allgather", "alltoall")


@dataclass(frozen=True)
class ParallelConfig:
    """Total GPUs = TP x PP x DP, spread evenly over the nodes.

    The experts of a mixture-of-experts model lie on the tensor-parallel group; with DP attention
    on the groups of all replicas together. EP divides that.
    """

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
    enable_expert_parallel: bool = option(
        False,
        "--enable-expert-parallel",
        help="split the experts over as many GPUs as may hold them, in place of --ep",
    )
    enable_dp_attention: bool = option(
        False,
        "--enable-dp-attention",
        help="replicas of a mixture-of-experts model share its experts",
    )
    moe_dispatch: str = option(
        "allgather",
        "--moe-dispatch",
        choices=MOE_DISPATCHES,
        help="with DP attention, how tokens reach the experts of other GPUs",
    )
    nnodes: int = option(
        1, "--nnodes", help="nodes that run this same command; in a SLURM job set by the launcher"
    )
    node_rank: int = option(
        0, "--node-rank", help="which of them this one is; 0 is the head, which serves"
    )
    dist_init_addr: str | None = option(
        None,
        "--dist-init-addr",
        help="where the nodes meet: an address of node 0 and a port that it can bind",
        metavar="HOST:PORT",
    )
    watchdog_timeout: float = option(
        300.0,
        "--watchdog-timeout",
        help="seconds without a finished step after which the engine counts as hung and ends",
        metavar="S",
    )

    def __post_init__(self) -> None:
        for name in ("tp_size", "pp_size", "dp_size", "ep_size", "nnodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.watchdog_timeout > 0:
            raise ConfigError(f"watchdog_timeout is {self.watchdog_timeout}; more than 0 s")
        self._check_experts()
        self._check_nodes()

    def _check_experts(self) -> None:
        if self.enable_dp_attention and self.dp_size == 1:
            raise ConfigError("enable_dp_attention needs replicas to split attention over: --dp 2")
        if self.moe_dispatch not in MOE_DISPATCHES:
            raise ConfigError(
                f"moe_dispatch is {self.moe_dispatch!r}; valid: {', '.join(MOE_DISPATCHES)}"
            )
        if self.moe_dispatch != "allgather" and not self.enable_dp_attention:
            raise ConfigError(
                f"moe_dispatch {self.moe_dispatch} needs --enable-dp-attention: without it every GPU "
                "that holds experts has all tokens already"
            )
        over = self.expert_group_size
        if over % self.ep_size:
            what = "tp_size x dp_size" if self.enable_dp_attention else "tp_size"
            raise ConfigError(
                f"ep_size {self.ep_size} does not divide {what} = {over}; valid: {_listed(over)}"
            )
        if self.enable_expert_parallel and self.ep_size not in (1, over):
            raise ConfigError(
                f"enable_expert_parallel means ep_size {over}, but ep_size is {self.ep_size}; "
                "give one of the two"
            )

    def _check_nodes(self) -> None:
        if self.world_size % self.nnodes:
            raise ConfigError(
                f"{self.product()} GPUs do not spread evenly over nnodes {self.nnodes}; "
                f"valid: {_listed(self.world_size)}"
            )
        if not 0 <= self.node_rank < self.nnodes:
            raise ConfigError(
                f"node_rank {self.node_rank} is not one of 0 to {self.nnodes - 1} (nnodes "
                f"{self.nnodes})"
            )
        if self.nnodes > 1 and self.dist_init_addr is None:
            raise ConfigError(
                f"nnodes {self.nnodes} needs --dist-init-addr HOST:PORT, the same on every node: an "
                "address of node 0 that the others reach, and a free port there"
            )
        if self.dist_init_addr is not None:
            split_address(self.dist_init_addr)

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size * self.dp_size

    @property
    def replica_size(self) -> int:
        """Ranks that work on one request."""
        return self.tp_size * self.pp_size

    @property
    def num_cores(self) -> int:
        """Engines behind the endpoint: replicas that share experts step in one."""
        return 1 if self.enable_dp_attention else self.dp_size

    @property
    def ranks_per_node(self) -> int:
        return self.world_size // self.nnodes

    @property
    def expert_group_size(self) -> int:
        """Ranks that hold one stage's experts together."""
        return self.tp_size * (self.dp_size if self.enable_dp_attention else 1)

    @property
    def expert_size(self) -> int:
        """Parts that the experts are split into, whichever option said so."""
        return self.expert_group_size if self.enable_expert_parallel else self.ep_size

    def product(self) -> str:
        """The whole sum, for messages: "tp_size 2 x pp_size 1 x dp_size 3 = 6"."""
        return (
            f"tp_size {self.tp_size} x pp_size {self.pp_size} x dp_size {self.dp_size} "
            f"= {self.world_size}"
        )


def split_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT.  Raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"dist_init_addr {text!r} is not of the form HOST:PORT")
    return host, int(port)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(number: int) -> str:
    return ", ".join(str(n) for n in divisors(number))
