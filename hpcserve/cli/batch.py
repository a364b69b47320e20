"""`hpcserve batch`: answer the rows of a file, and look at the answers."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcserve.cli import _batch_verbs as batch_verbs
from hpcserve.cli._jobs import JOB_SECTIONS, LAUNCHERS, layered_options, layered_settings
from hpcserve.cli.options import SectionedCommand, config_options, engine_config
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.config.engine import EngineConfig
from hpcserve.config.load import ENGINE_CONFIGS, Setting, build
from hpcserve.errors import ConfigError
from hpcserve.log import setup_logging

if TYPE_CHECKING:
    from hpcserve.batch.engine import Backend

EXIT_FAILED_ROWS = 3
SECTIONS: dict[str, Sequence[type[Any]]] = {
    "Batch": [BatchConfig],
    "Sampling, for rows that do not say": [RowDefaults],
    **JOB_SECTIONS,
    "Engine": ENGINE_CONFIGS,
}
BATCH_CONFIGS = tuple(config for configs in SECTIONS.values() for config in configs)
_ARGV = "hpcserve.batch.argv"


class _CommandWithVerbs(SectionedCommand):
    """`batch INPUT` runs a file; `batch VERB ...` does something else.

    A file that is named as a verb is reached as ./show.
    """

    verbs: dict[str, click.Command]

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args and args[0] in self.verbs:
            name = f"{info_name} {args[0]}"
            return self.verbs[args[0]].make_context(name, args[1:], parent, **extra)
        words = tuple(args)  # parsing takes them away
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta[_ARGV] = words
        return ctx

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(
                [
                    (f"batch {name}", verb.get_short_help_str(80))
                    for name, verb in self.verbs.items()
                ]
            )


@click.command(cls=_CommandWithVerbs)
@click.argument("input_arguments", metavar="INPUT...", nargs=-1)
@click.option(
    "--launcher",
    type=click.Choice(LAUNCHERS),
    default="auto",
    envvar="HPCSERVE_LAUNCHER",
    help="auto: as a job where there is SLURM and this is no allocation of it; local: here, now",
)
@layered_options
@config_options(SECTIONS)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    input_arguments: tuple[str, ...],
    launcher: str,
    cluster: str | None,
    preset: str | None,
    **_: Any,
) -> None:
    """Answer every row of INPUT: one line of OUTPUT for each, in the same order.

    Rows are OpenAI batch lines (custom_id, method, url, body) or plain {"prompt": ...} or
    {"messages": [...]} objects, one per line, or rows of .parquet, .csv and saved datasets; .gz
    and .zst are read and written. What is finished is kept in OUTPUT.hpcserve: run the same
    command again and it goes on, whatever ended it.

    Exit code: 0 all rows answered, 1 the run failed, 2 wrong usage, 3 some rows failed (OUTPUT
    says why), 75 ended early, to be run again.
    """
    setup_logging()
    settings = layered_settings(ctx, BATCH_CONFIGS, cluster, preset)
    batch = with_inputs(build(BatchConfig, settings), input_arguments)
    engine, defaults = engine_config(settings, None), build(RowDefaults, settings)
    argv, seed = ctx.meta.get(_ARGV, ()), engine.scheduler.random_seed
    backend = functools.lru_cache(functools.partial(_backend, engine))
    begin = functools.partial(_begin_for_jobs, backend, batch, defaults, seed, argv)
    if launcher == "slurm" or (launcher == "auto" and _as_job(batch)):
        _submit(ctx, batch, settings, engine, functools.partial(begin, elsewhere=True))
        return
    if engine.parallel.node_rank > 0:
        from hpcserve.engine.node_agent import run_agent

        ctx.exit(run_agent(engine))
    # Here and not above: `--help` and a mistake in the options must not wait for it.
    from hpcserve.batch.run import run_batch

    with ExitStack() as stack:
        if batch.jobs > 1:
            from hpcserve.batch.jobs import other_workers

            batch = stack.enter_context(
                other_workers(argv, batch, functools.partial(begin, elsewhere=False))
            )
        report = run_batch(backend(), batch, defaults, seed=seed, argv=argv)
    if report is None:
        click.echo(
            "nothing is left to take: other workers finish the run, and one more stands by; this "
            "one ends",
            err=True,
        )
        return
    if report.num_failed and report.first_failure:
        line, message = report.first_failure
        click.secho(
            f"{report.num_failed:,} of {report.num_rows:,} rows failed; the first is line {line}: "
            f"{message}",
            fg="red",
            err=True,
        )
        ctx.exit(EXIT_FAILED_ROWS)


def _as_job(batch: BatchConfig) -> bool:
    """SLURM is here, we are in no allocation of it, and the files are files that nodes can see."""
    from hpcserve.launcher import slurm_query
    from hpcserve.launcher.environment import inside_allocation

    here = "-" in (*batch.inputs, batch.output) or inside_allocation()
    return not here and slurm_query.is_here()


def _backend(engine: EngineConfig) -> Backend:
    from hpcserve.batch import client_engine

    return client_engine.ClientBackend(engine)


def _begin_for_jobs(
    backend: Callable[[], Backend],
    batch: BatchConfig,
    defaults: RowDefaults,
    seed: int,
    argv: Sequence[str],
    *,
    elsewhere: bool,
) -> bool:
    """The manifest, and starting over: once, where the jobs are started, by none of them.

    Returns whether anything is left to do.
    """
    from hpcserve.batch.begin import begin_for_jobs

    return begin_for_jobs(backend(), batch, defaults, seed=seed, argv=argv, elsewhere=elsewhere)


def _submit(
    ctx: click.Context,
    batch: BatchConfig,
    settings: Mapping[str, Setting],
    engine: EngineConfig,
    begin: Callable[[], bool],
) -> None:
    from hpcserve.cli import _submission as submission
    from hpcserve.launcher.plan.check import refuse_what_cannot_fit

    request = submission.batch_request(ctx, batch, settings, engine)
    refuse_what_cannot_fit(request)
    if not begin():
        click.echo(f"the run for {batch.output} is complete: nothing to submit", err=True)
        return
    submission.say_submitted(request, submission.submit(request, "slurm"))


def with_inputs(batch: BatchConfig, arguments: tuple[str, ...]) -> BatchConfig:
    """Inputs stand without a flag, or as `-i`, as `vllm run-batch` takes it."""
    if arguments and batch.inputs and arguments != batch.inputs:
        given = " ".join(arguments)
        raise ConfigError(f"the input is given twice: {given} and {' '.join(batch.inputs)}")
    if not arguments and not batch.inputs:
        raise ConfigError("no INPUT; say `hpcserve batch INPUT -o OUTPUT`")
    if not batch.output:
        _refuse_misspelt_verb(arguments)
        raise ConfigError("no output; say `hpcserve batch INPUT -o OUTPUT`")
    return dataclasses.replace(batch, inputs=arguments or batch.inputs)


def _refuse_misspelt_verb(arguments: tuple[str, ...]) -> None:
    """`batch statsu out.jsonl` means no input called statsu."""
    close = difflib.get_close_matches(arguments[0], batch_verbs.VERBS, n=1) if arguments else []
    if close and not Path(arguments[0]).exists():
        raise ConfigError(
            f"there is no input file {arguments[0]}; did you mean `batch {close[0]}`?"
        )


command.verbs = batch_verbs.VERBS
