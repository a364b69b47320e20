"""`hpcserve presets`: ready-made options for models and clusters."""

from __future__ import annotations

import click

from hpcserve.cli._jobs import preset_file, preset_names, print_json, print_table

KINDS = ("models", "clusters")


@click.group()
def command() -> None:
    """Show the presets for `--preset` (models) and `--cluster` (clusters)."""


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


def about(kind: str, name: str) -> str:
    """The comment in the first line of a preset."""
    first = preset_file(kind, name).read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip()
