"""A runtime turns `image + mounts` into srun options and words before the command."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import PurePosixPath

from hpcserve.errors import ConfigError

_SQUASHFS = (".sqsh", ".squashfs", ".sqfs")
_TARBALL = (".tar", ".tar.gz", ".tgz", ".tar.zst")


@dataclass(frozen=True)
class ContainerSpec:
    """mounts: "SOURCE:TARGET[:ro]".  env_names: variables whose value must be the host's.

    users_env: those of them that the user named with --env.
    """

    image: str
    mounts: tuple[str, ...] = ()
    env_names: tuple[str, ...] = ()
    users_env: tuple[str, ...] = ()
    gpus: bool = True


class ContainerRuntime(ABC):
    """`name` is the word after `--container-runtime`.

    Each word is given as shell text, quoted already: some hold variables of the script.
    """

    name: str
    #: Kinds of image it can start: registry, squashfs, sif, tarball.
    kinds: tuple[str, ...]

    def srun_options(self, spec: ContainerSpec) -> list[str]:
        return []

    @abstractmethod
    def prefix(self, spec: ContainerSpec) -> list[list[str]]:
        """Words that come before the command, one list for each line of the script."""

    def check(self, image: str) -> None:
        """Raises ConfigError for a kind of image that this runtime cannot start."""
        kind = image_kind(image)
        if kind not in self.kinds:
            raise ConfigError(
                f"{self.name} cannot start {image} (a {kind} image); it takes "
                f"{', '.join(self.kinds)}"
                + ("; convert it once with `enroot import`" if self.name == "pyxis" else "")
            )


def image_kind(image: str) -> str:
    name = PurePosixPath(image).name
    if name.endswith(_SQUASHFS):
        return "squashfs"
    if name.endswith(".sif"):
        return "sif"
    return "tarball" if name.endswith(_TARBALL) else "registry"
