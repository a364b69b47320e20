"""`hpcserve kernels`: the cache of compiled code."""

from __future__ import annotations

from typing import Any

import click

from hpcserve.cli.options import config_options, engine_config, settings_of
from hpcserve.config.load import ENGINE_CONFIGS


class _Verbs(click.Group):
    @property
    def verbs(self) -> dict[str, click.Command]:
        """As other commands with verbs have it."""
        return dict(self.commands)


_ARCH = click.option("--arch", help="compute capability, like 9.0a; default: this machine's GPU")


@click.group(cls=_Verbs)
def command() -> None:
    """Compile kernels ahead, and see what is compiled. HPCSERVE_CACHE_DIR says where."""


@command.command()
@click.argument("model_argument", metavar="[MODEL]", required=False)
@_ARCH
@config_options({"Engine": ENGINE_CONFIGS})
@click.pass_context
def build(ctx: click.Context, /, model_argument: str | None, arch: str | None, **_: Any) -> None:
    """Compile what MODEL needs, so that no server or job waits for a compiler.

    flashinfer's modules need nvcc but no GPU; the project's own kernels need the GPU.
    """
    from pathlib import Path

    from hpcserve.config.checkpoint import CheckpointConfig
    from hpcserve.engine.kernel_build import arch_here, build_flashinfer, build_triton, dtype_of
    from hpcserve.engine.model_folder import with_model_folder
    from hpcserve.errors import UsageError
    from hpcserve.log import setup_logging

    setup_logging()
    config = with_model_folder(engine_config(settings_of(ctx, ENGINE_CONFIGS), model_argument))
    checkpoint = CheckpointConfig.load(Path(config.model.model))
    chosen = arch or arch_here()
    if chosen is None:
        raise UsageError("no GPU here to compile for; name one with --arch, like --arch 9.0a")
    build_flashinfer(checkpoint, dtype_of(config, checkpoint), chosen, click.echo)
    if arch is None or arch == arch_here():
        build_triton(config, click.echo)


@command.command("list")
@_ARCH
def list_modules(arch: str | None) -> None:
    """List what is compiled: flashinfer's modules, and how many of Triton's."""
    folder = _folder(arch)
    from hpcserve.engine.flashinfer_modules import installed, own_aot_folder

    for path in installed(own_aot_folder()):
        click.echo(f"flashinfer  {path.stem}")
    num_triton = len(list((folder / "triton").glob("*/*.cubin")))
    click.echo(f"triton      {num_triton} kernels")


@command.command()
@_ARCH
def path(arch: str | None) -> None:
    """Print the folder for this machine, or for --arch."""
    click.echo(str(_folder(arch)))


def _folder(arch: str | None) -> Any:
    from hpcserve.engine.kernel_build import arch_here
    from hpcserve.engine.kernel_cache import use_kernel_folder

    return use_kernel_folder(arch or arch_here())
