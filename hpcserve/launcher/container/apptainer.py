"""Apptainer (Singularity): runs as the user, inside the job's cgroup."""

from __future__ import annotations

from hpcserve.launcher.container.base import ContainerRuntime, ContainerSpec, image_kind
from hpcserve.launcher.template import quote


class Apptainer(ContainerRuntime):
    name = "apptainer"
    kinds = ("registry", "squashfs", "sif", "tarball")

    def prefix(self, spec: ContainerSpec) -> list[list[str]]:
        words = [["apptainer", "exec", *(["--nv"] if spec.gpus else []), "--no-home"]]
        words += [["--bind", quote(mount)] for mount in spec.mounts]
        return [*words, [quote(_uri(spec.image))]]


def _uri(image: str) -> str:
    kind = image_kind(image)
    if kind == "tarball":
        return f"docker-archive:{image}"
    return image if kind != "registry" or "://" in image else f"docker://{image}"


RUNTIME = Apptainer()
