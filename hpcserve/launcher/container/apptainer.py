"""Apptainer (Singularity): runs as the user, inside the job's cgroup."""

from __future__ import annotations

import shutil

from hpcserve.launcher.container.base import ContainerRuntime, ContainerSpec, image_kind
from hpcserve.launcher.template import quote


class Apptainer(ContainerRuntime):
    name = "apptainer"
    kinds = ("registry", "squashfs", "sif", "tarball")

    def prefix(self, spec: ContainerSpec) -> list[list[str]]:
        # The older name of the same command, where a site has no other.
        old = shutil.which("apptainer") is None and shutil.which("singularity") is not None
        command = "singularity" if old else "apptainer"
        words = [[command, "exec", *(["--nv"] if spec.gpus else []), "--no-home"]]
        words += [["--bind", quote(mount)] for mount in spec.mounts]
        return [*words, [quote(_uri(spec.image))]]


def _uri(image: str) -> str:
    kind = image_kind(image)
    if kind == "tarball":
        return f"docker-archive:{image}"
    return image if kind != "registry" or "://" in image else f"docker://{image}"


RUNTIME = Apptainer()
