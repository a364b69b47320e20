"""What is true of a site rather than of a job: its GPUs, network, containers and environment."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError

GPU_REQUESTS = ("gpus-per-node", "gres", "none")
FABRICS = ("auto", "efa", "ib", "roce", "slingshot", "tcp")
RUNTIMES = ("auto", "none", "pyxis", "apptainer", "podman-hpc", "docker")


@dataclass(frozen=True)
class ClusterConfig:
    """Usually from a cluster file (`hpcserve cluster init`); each field is an option as well."""

    gpu: str | None = option(
        None, "--gpu", help="GPU model of the nodes, such as h200; lets `submit` check what fits"
    )
    node_gpus: int | None = option(
        None, "--node-gpus", help="GPUs that a node of this cluster has", metavar="COUNT"
    )
    gpu_request: str = option(
        "gpus-per-node",
        "--gpu-request",
        choices=GPU_REQUESTS,
        help="how GPUs are asked for here; none: nodes come whole, or have no GPUs",
    )
    container: str | None = option(
        None, "--container", help="image: registry name, .sqsh, .sif or docker tarball"
    )
    container_runtime: str = option(
        "auto", "--container-runtime", choices=RUNTIMES, help="auto: by the image's kind"
    )
    mount: tuple[str, ...] = option(
        (), "--mount", help="folder to show in the container", metavar="SOURCE:TARGET[:ro]"
    )
    module: tuple[str, ...] = option((), "--module", help="`module load` this first")
    setup: tuple[str, ...] = option(
        (), "--setup", help="shell line to run on the first node before the start", metavar="LINE"
    )
    venv: str | None = option(
        None, "--venv", help="virtual environment with hpcserve; default: the one of this command"
    )
    env: tuple[str, ...] = option(
        (), "--env", help="variable for every process of the job", metavar="KEY=VALUE"
    )
    cache_dir: str | None = option(
        None, "--cache-dir", help="for compiled kernels and images; better not under $HOME"
    )
    fabric: str = option(
        "auto", "--fabric", choices=FABRICS, help="network between nodes; auto: seen on the nodes"
    )
    require_fabric: bool = option(
        False, "--require-fabric", help="fail rather than fall back to TCP"
    )
    ifname: str | None = option(
        None, "--ifname", help="network interface for set-up and TCP; default: the route's"
    )
    ib_hca: str | None = option(
        None, "--ib-hca", help="RDMA devices of the compute rails, comma-separated"
    )
    login_host: str | None = option(
        None, "--login", help="host name under which laptops reach the login node"
    )

    def __post_init__(self) -> None:
        for name, known in (
            ("gpu_request", GPU_REQUESTS),
            ("fabric", FABRICS),
            ("container_runtime", RUNTIMES),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r}; choose one of {', '.join(known)}"
                )
        for pair in self.env:
            if not pair.partition("=")[1] or not pair.partition("=")[0].isidentifier():
                raise ConfigError(f"env {pair!r} is not of the form KEY=VALUE")
        for mount in self.mount:
            if len(mount.split(":")) not in (2, 3):
                raise ConfigError(f"mount {mount!r} is not of the form SOURCE:TARGET[:ro]")
        if self.container is None and self.container_runtime not in ("auto", "none"):
            raise ConfigError(f"container runtime {self.container_runtime} needs --container IMAGE")
        if self.require_fabric and self.fabric == "tcp":
            raise ConfigError("--require-fabric and --fabric tcp contradict each other")
