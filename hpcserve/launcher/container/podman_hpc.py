"""podman-hpc, as at NERSC: rootless, inside the job's cgroup."""

from __future__ import annotations

from hpcserve.launcher.container.base import ContainerRuntime, ContainerSpec
from hpcserve.launcher.container.docker import task_script


class PodmanHpc(ContainerRuntime):
    name = "podman-hpc"
    kinds = ("registry", "tarball")

    def prefix(self, spec: ContainerSpec) -> list[list[str]]:
        return task_script("podman-hpc", spec)


RUNTIME = PodmanHpc()
