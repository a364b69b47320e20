"""What the commands about jobs share: options, their layers, and how jobs are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from hpcserve import envs
from hpcserve.cli.options import settings_of
from hpcserve.config import layers
from hpcserve.config.cluster import ClusterConfig
from hpcserve.config.job import JobConfig
from hpcserve.config.load import Setting
from hpcserve.config.slurm import SlurmConfig
from hpcserve.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

JOB_SECTIONS: dict[str, Sequence[type[Any]]] = {
    "SLURM": [SlurmConfig],
    "Cluster": [ClusterConfig],
    "Job": [JobConfig],
}
LAUNCHERS = ("auto", "slurm", "local")
USER_CLUSTER_FILE = Path("~/.config/hpcserve/cluster.yaml")
#: Presets that were saved by the user; they win over ours of the same name.
USER_PRESETS = Path("~/.config/hpcserve/presets")
PRESETS = Path(__file__).parent.parent / "configs"


def layered_options(function: F) -> F:
    """`--cluster` and `--preset`, the layers under the command line and the environment."""
    preset = click.option("--preset", help="model preset (see `hpcserve presets list`), or a file")
    cluster = click.option(
        "--cluster",
        help="cluster file, or name of a cluster preset; default: HPCSERVE_CLUSTER, "
        f"else {USER_CLUSTER_FILE} where it exists",
    )
    return cluster(preset(function))


def layered_settings(
    ctx: click.Context, configs: Sequence[type[Any]], cluster: str | None, preset: str | None
) -> dict[str, Setting]:
    """Command line, environment (and --config FILE), cluster file, preset, default: first wins."""
    typed = settings_of(ctx, configs)
    stack: list[Mapping[str, Setting]] = [typed]
    sbatch = layers.from_sbatch(configs, os.environ)
    # A variable of sbatch stands below the command line and above every file.
    spoken = {
        n
        for n, s in typed.items()
        if s.origin == "command line" or s.origin.startswith("environment")
    }
    stack.insert(0, {name: one for name, one in sbatch.items() if name not in spoken})
    path = cluster_file(cluster)
    if path is not None:
        stack.append(layers.from_file(configs, path, _called("cluster", path)))
    if preset is not None:
        path = preset_file("models", preset)
        stack.append(layers.from_file(configs, path, _called("model", path)))
    return layers.overlay({**typed, **stack[0]}, *stack[2:])


def cluster_file(name: str | None) -> Path | None:
    """The cluster file to use; None where there is none."""
    chosen = name or envs.HPCSERVE_CLUSTER.get()
    if chosen:
        return preset_file("clusters", chosen)
    usual = USER_CLUSTER_FILE.expanduser()
    return usual if usual.is_file() else None


def preset_file(kind: str, name: str) -> Path:
    """A file of that path, else the preset of that name; kind: models or clusters."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        return path
    for folder in _preset_folders(kind):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = ", ".join(preset_names(kind))
    raise ConfigError(f"no preset {name!r} among {kind}; there are: {known}")


def _called(kind: str, path: Path) -> str:
    """How a script speaks of a layer: our presets by name, other files by path."""
    ours = path.is_relative_to(PRESETS)
    return f"{kind} preset {path.stem}" if ours else f"{kind} file {path}"


def preset_names(kind: str) -> list[str]:
    found = {path.stem for folder in _preset_folders(kind) for path in folder.glob("*.yaml")}
    return sorted(found)


def _preset_folders(kind: str) -> list[Path]:
    own = [USER_PRESETS.expanduser()] if kind == "models" else []
    return [*own, PRESETS / kind]


def print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need be; without a terminal's colours, so that `awk` can read it."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
