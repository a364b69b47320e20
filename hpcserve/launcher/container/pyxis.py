"""pyxis and enroot: `srun` itself starts the container."""

from __future__ import annotations

from hpcserve.launcher.container.base import ContainerRuntime, ContainerSpec
from hpcserve.launcher.template import quote


class Pyxis(ContainerRuntime):
    name = "pyxis"
    kinds = ("registry", "squashfs")

    def srun_options(self, spec: ContainerSpec) -> list[str]:
        options = [f"--container-image={quote(_enroot_name(spec.image))}"]
        if spec.mounts:
            options.append(f"--container-mounts={quote(','.join(spec.mounts))}")
        if spec.env_names:
            options.append(f"--container-env={quote(','.join(spec.env_names))}")
        return [*options, "--no-container-mount-home", "--no-container-entrypoint"]

    def prefix(self, spec: ContainerSpec) -> list[list[str]]:
        return []


def _enroot_name(image: str) -> str:
    """enroot writes REGISTRY#NAME where docker writes REGISTRY/NAME."""
    if image.startswith(("/", "./")) or "#" in image:
        return image
    plain = image.removeprefix("docker://")
    first, slash, rest = plain.partition("/")
    is_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return f"{first}#{rest}" if is_registry else plain


RUNTIME = Pyxis()
