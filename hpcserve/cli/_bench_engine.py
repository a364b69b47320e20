"""`hpcserve bench offline` and `one-batch`: an engine, and its steps, without HTTP."""

from __future__ import annotations

from typing import Any

import click

from hpcserve.bench.cli_options import (
    FILE,
    NumberList,
    hardware_of,
    hardware_options,
    note,
    report_options,
    selection_of,
    workload_options,
)
from hpcserve.cli._bench_command import WorkloadCommand
from hpcserve.cli.options import SectionedCommand, config_options, engine_config, settings_of
from hpcserve.config.load import ENGINE_CONFIGS


@click.command(cls=WorkloadCommand)
@workload_options
@click.option(
    "--frontend/--no-frontend",
    default=True,
    help="hpcserve.LLM, or the scheduler and executor alone in this process",
)
@hardware_options
@report_options
@config_options({"Engine": ENGINE_CONFIGS})
@click.pass_context
def offline(ctx: click.Context, /, **params: Any) -> None:
    """All requests at once through an engine of one's own, without HTTP."""
    from hpcserve.bench.environment import environment
    from hpcserve.bench.offline import run_offline
    from hpcserve.bench.report import print_cells, print_json, write_json
    from hpcserve.log import setup_logging

    setup_logging()
    config = engine_config(settings_of(ctx, ENGINE_CONFIGS), None)
    chosen = selection_of(params)
    outcome = run_offline(
        config,
        chosen,
        seed=params["workload_seed"],
        repeats=params["repeats"],
        warmup=params["warmup"],
        frontend=params["frontend"],
        hardware=hardware_of(params),
        trace_file=params["save_trace"],
        say=note,
    )
    result = {"benchmark": "offline", "preset": params["preset"], **outcome}
    result["environment"] = environment()
    print_cells(result["cells"], params["preset"] or chosen.name)
    if params["output"]:
        write_json(params["output"], result)
    print_json(result)


@click.command("one-batch", cls=SectionedCommand)
@click.option("--batch-size", "--batch", type=NumberList(int), default="1,16,64", show_default=True)
@click.option("--input-len", type=NumberList(int), default="1024", show_default=True)
@click.option("--steps", type=click.IntRange(2), default=64, show_default=True, help="decode steps")
@click.option("--depth", type=click.IntRange(1, 2), default=2, show_default=True,
              help="steps under way at once; the engine runs 2 on a GPU")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@hardware_options
@click.option("--output", "-o", type=FILE, help="write the whole result there (JSON)")
@config_options({"Engine": ENGINE_CONFIGS})
@click.pass_context
def one_batch(ctx: click.Context, /, **params: Any) -> None:
    """Time prefill and decode steps on the executor, without a scheduler; floors beside them."""
    from hpcserve.bench.environment import environment
    from hpcserve.bench.one_batch import print_rows, run_one_batch
    from hpcserve.bench.report import print_json, write_json
    from hpcserve.log import setup_logging

    setup_logging()
    rows = run_one_batch(
        engine_config(settings_of(ctx, ENGINE_CONFIGS), None),
        batch_sizes=params["batch_size"],
        input_lens=params["input_len"],
        num_steps=params["steps"],
        depth=params["depth"],
        repeats=params["repeats"],
        hardware=hardware_of(params),
        say=note,
    )
    result = {"benchmark": "one-batch", "rows": rows, "environment": environment()}
    print_rows(rows)
    if params["output"]:
        write_json(params["output"], result)
    print_json(result)
