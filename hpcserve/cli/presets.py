"""`hpcserve presets`: ready-made options for models and clusters, and your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from hpcserve.cli._jobs import (
    JOB_SECTIONS,
    USER_PRESETS,
    layered_options,
    layered_settings,
    preset_file,
    preset_names,
    print_json,
    print_table,
)
from hpcserve.cli.options import SectionedCommand, config_options, engine_config
from hpcserve.config.load import ENGINE_CONFIGS, Setting
from hpcserve.config.server import ServerConfig

KINDS = ("models", "clusters")
#: Options that belong to one job, or must not lie in a file.
_NOT_SAVED = ("run_dir", "api_key", "dependency")


@click.group()
def command() -> None:
    """Show the presets for `--preset` (models) and `--cluster` (clusters), and save your own."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def list_presets(as_json: bool) -> None:
    """List the presets, each with its first line."""
    rows = [
        {"kind": kind, "name": name, "about": about(kind, name)}
        for kind in KINDS
        for name in preset_names(kind)
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(["KIND", "NAME", "ABOUT"], [list(row.values()) for row in rows])


@command.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a preset, to be saved and changed."""
    for kind in KINDS:
        if name in preset_names(kind):
            click.echo(preset_file(kind, name).read_text(encoding="utf-8"), nl=False)
            return
    preset_file(KINDS[0], name)  # says which there are


@command.command(cls=SectionedCommand)
@click.argument("name")
@click.argument("model_argument", metavar="[MODEL]", required=False)
@click.option("--about", default="", help="first line of the preset, shown by `presets list`")
@click.option("--force", is_flag=True, help="replace a preset of yours that exists")
@layered_options
@config_options({**JOB_SECTIONS, "Server": [ServerConfig], "Engine": ENGINE_CONFIGS})
@click.pass_context
def save(
    ctx: click.Context,
    /,
    name: str,
    model_argument: str | None,
    about: str,
    force: bool,
    cluster: str | None,
    preset: str | None,
    **_: Any,
) -> None:
    """Save options of `hpcserve submit` as the preset NAME, for `--preset NAME`.

    Those of the command line and of --preset; what comes from the environment or the cluster file
    stays there.
    """
    from hpcserve.errors import OutputError, UsageError
    from hpcserve.launcher.files import write_atomically
    from hpcserve.launcher.request import SERVE_CONFIGS

    if not name.replace("-", "").replace(".", "").replace("_", "").isalnum():
        raise UsageError(f"{name!r} is no name for a preset: take letters, digits, - . and _")
    settings = layered_settings(ctx, SERVE_CONFIGS, cluster, preset)
    if model_argument:
        model = engine_config(settings, model_argument).model.model
        settings["model"] = Setting(model, "command line")
    path = USER_PRESETS.expanduser() / f"{name}.yaml"
    if path.exists() and not force:
        raise OutputError(f"{path} exists; --force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _as_yaml(settings, about or f"Saved by `hpcserve presets save {name}`")
    write_atomically(path, text)
    click.echo(text, nl=False)
    click.echo(f"written to {path}; `hpcserve submit --preset {name}` takes it", err=True)


def _as_yaml(settings: Mapping[str, Setting], about: str) -> str:
    import yaml

    from hpcserve.config.declared import declared_in
    from hpcserve.launcher.request import SERVE_CONFIGS

    content = {}
    for declared in declared_in(SERVE_CONFIGS):
        one = settings[declared.name]
        if declared.name in _NOT_SAVED or not one.origin.startswith(("command line", "model ")):
            continue
        long = next(flag for flag in declared.option.flags if flag.startswith("--"))
        value = list(one.value) if isinstance(one.value, tuple) else one.value
        content[long.removeprefix("--")] = value
    lines = " ".join(about.split())
    return f"# {lines}\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def about(kind: str, name: str) -> str:
    """The comment in the first line of a preset."""
    first = preset_file(kind, name).read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip()
