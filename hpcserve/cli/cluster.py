"""`hpcserve cluster`: what hpcserve knows of this site."""

from __future__ import annotations

from pathlib import Path

import click

from hpcserve.cli._jobs import USER_CLUSTER_FILE, cluster_file, preset_names, print_json


@click.group()
def command() -> None:
    """Write and show the cluster file: the options that hold for every job here."""


@command.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help=f"default: {USER_CLUSTER_FILE}"
)
@click.option("--force", is_flag=True, help="replace a file that exists")
def init(output: Path | None, force: bool) -> None:
    """Look at this site's SLURM and write a cluster file to be checked and changed."""
    from hpcserve.errors import OutputError
    from hpcserve.launcher.files import write_atomically
    from hpcserve.launcher.site import describe_site

    path = (output or USER_CLUSTER_FILE).expanduser()
    if path.exists() and not force:
        raise OutputError(f"{path} exists; --force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = describe_site()
    write_atomically(path, text)
    click.echo(text, nl=False)
    click.echo(
        f"written to {path}; check it, then `hpcserve render submit ...` shows its effect", err=True
    )


@command.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def show(name: str | None, as_json: bool) -> None:
    """Print the cluster file in force, or the one that NAME means."""
    import yaml

    path = cluster_file(name)
    if path is None and as_json:
        print_json({"file": None, "options": {}})
        return
    if path is None:
        presets = ", ".join(preset_names("clusters"))
        click.echo(
            f"no cluster file; `hpcserve cluster init` writes one (presets: {presets})", err=True
        )
        return
    text = path.read_text(encoding="utf-8")
    if as_json:
        print_json({"file": str(path), "options": yaml.safe_load(text)})
    else:
        click.echo(f"# {path}\n{text}", nl=False)
