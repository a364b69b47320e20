"""`hpcserve batch VERB RUN`: look at a run, go on with it, end it. RUN is its directory or output."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@click.command()
@click.argument("output", metavar="OUTPUT", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--input",
    "questions",
    type=click.Path(exists=True, dir_okay=False),
    help="the input of the run, to show each question beside its answer",
)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="rows"
)
@click.option("--failed", is_flag=True, help="only rows that failed")
def show(output: str, questions: str | None, limit: int, failed: bool) -> None:
    """Show the answers of an output file as a table."""
    from hpcserve.batch.show import print_answers

    print_answers(Path(output), Path(questions) if questions else None, limit=limit, failed=failed)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="as one JSON object")
def status(run: str, as_json: bool) -> None:
    """Say how far a run is."""
    from hpcserve.batch import status as statuses
    from hpcserve.batch.run_dir import RunDir

    found = statuses.of_run(RunDir.find(run))
    click.echo(json.dumps(found, indent=2) if as_json else statuses.as_text(found))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("run", metavar="RUN")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def resume(ctx: click.Context, run: str, options: tuple[str, ...]) -> None:
    """Go on with a run, by the command that began it and OPTIONS behind it."""
    from hpcserve.batch.run_dir import RunDir
    from hpcserve.batch.verbs import uncancel

    run_dir = RunDir.find(run)
    uncancel(run_dir)
    _run_again(ctx, run_dir.path, options)


@click.command("retry-errors", context_settings={"ignore_unknown_options": True})
@click.argument("run", metavar="RUN")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def retry_errors(ctx: click.Context, run: str, options: tuple[str, ...]) -> None:
    """Answer the failed rows of a run again; the others stay as they are."""
    from hpcserve.batch.run_dir import RunDir
    from hpcserve.batch.verbs import forget_failures, uncancel

    run_dir = RunDir.find(run)
    num_rows = forget_failures(run_dir)
    click.echo(f"{num_rows:,} failed rows are answered again", err=True)
    uncancel(run_dir)
    _run_again(ctx, run_dir.path, options)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("-o", "--output", help="write here instead of to the run's output")
@click.option("--partial", is_flag=True, help="also where rows are missing")
def merge(run: str, output: str | None, partial: bool) -> None:
    """Write the output from what is finished, without an engine."""
    from hpcserve.batch.run_dir import RunDir
    from hpcserve.batch.verbs import merge_run

    where, num_rows = merge_run(RunDir.find(run), output, partial=partial)
    click.echo(f"{num_rows:,} rows are in {where}")


@click.command()
@click.argument("run", metavar="RUN")
@click.pass_context
def verify(ctx: click.Context, run: str) -> None:
    """Prove from the files alone that every input row has exactly one output."""
    from hpcserve.batch.run_dir import RunDir
    from hpcserve.batch.verify import verify_run

    proof = verify_run(RunDir.find(run))
    for problem in proof.problems:
        click.secho(problem, fg="red", err=True)
    if proof.problems:
        ctx.exit(1)
    click.echo(
        f"{proof.num_rows:,} rows of {proof.num_files} input files, {proof.num_rows:,} outputs: "
        "every row has exactly one"
    )


@click.command()
@click.argument("run", metavar="RUN")
def cancel(run: str) -> None:
    """End every worker of a run within seconds; finished rows are kept."""
    from hpcserve.batch.run_dir import RunDir
    from hpcserve.batch.verbs import cancel_run

    run_dir = RunDir.find(run)
    cancel_run(run_dir)
    click.echo(f"cancelled; `hpcserve batch resume {run_dir.path}` goes on")


VERBS: dict[str, click.Command] = {
    "status": status,
    "resume": resume,
    "retry-errors": retry_errors,
    "merge": merge,
    "verify": verify,
    "cancel": cancel,
    "show": show,
}


def _run_again(ctx: click.Context, run_dir: Path, options: tuple[str, ...]) -> None:
    from hpcserve.batch.verbs import command_of
    from hpcserve.cli import batch

    cwd, argv = command_of(run_dir)
    with _inside(cwd):
        words = [*argv, *options]
        code = batch.command.main(words, prog_name="hpcserve batch", standalone_mode=False)
    ctx.exit(code or 0)


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    """The command's file names are meant from where it was first given."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
