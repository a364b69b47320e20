"""`hpcserve bench`: how fast a server, an engine or a model step is, and what a profile says."""

from __future__ import annotations

from pathlib import Path

import click

from hpcserve.bench.cli_options import note
from hpcserve.cli._bench_engine import offline, one_batch
from hpcserve.cli._bench_http import frontend, self_test
from hpcserve.cli._bench_serving import serving
from hpcserve.cli._bench_startup import startup
from hpcserve.cli._bench_trace import trace


class _Verbs(click.Group):
    @property
    def verbs(self) -> dict[str, click.Command]:
        """As other commands with verbs have it."""
        return dict(self.commands)


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def command() -> None:
    """Measure a server, an engine, a step or a start. The last line of stdout is JSON."""


@click.command("make-model")
@click.argument("shape")
@click.argument("folder", type=click.Path(path_type=Path))
def make_model(shape: str, folder: Path) -> None:
    """Write a model FOLDER of a known SHAPE without weights, for --load-format dummy.

    Shapes: llama-3.1-8b, llama-3.1-70b, qwen2.5-14b, qwen3-0.6b, qwen3-30b-a3b.
    """
    from hpcserve.bench.stand_in import make_stand_in

    make_stand_in(shape, folder)
    note(f"wrote {folder}; run it with --model {folder} --load-format dummy")


for verb in (serving, offline, one_batch, startup, make_model, self_test, frontend, trace):
    command.add_command(verb)
