"""`hpcserve bench`: how fast a server, an engine or a model step is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcserve.bench.cli_options import (
    FILE,
    NumberList,
    WorkloadFlags,
    hardware_options,
    report_options,
    workload_options,
    workload_values,
)
from hpcserve.cli.options import SectionedCommand, config_options, engine_config, settings_of
from hpcserve.config.load import ENGINE_CONFIGS

if TYPE_CHECKING:
    from hpcserve.bench.probe import Server
    from hpcserve.bench.roofline import Hardware
    from hpcserve.bench.selection import Selection
    from hpcserve.bench.serving import ServingPlan

DEFAULT_URL = "http://127.0.0.1:30000"
EXIT_NOTHING_ANSWERED = 1


class _Verbs(click.Group):
    @property
    def verbs(self) -> dict[str, click.Command]:
        """As other commands with verbs have it."""
        return dict(self.commands)


class _WorkloadCommand(WorkloadFlags, SectionedCommand):
    """Flags of workloads, in sections with others."""


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def command() -> None:
    """Measure a server, an engine, a step or a start. The last line of stdout is JSON."""


@command.command(cls=_WorkloadCommand)
@click.option("--base-url", "--url", default=DEFAULT_URL, show_default=True, help="the server")
@click.option("--api-key", help="sent as a bearer token; better set HPCSERVE_API_KEY")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="model folder, for MFU, MBU and the vocabulary (default: what the server names)",
)
@click.option("--served-model-name", help="the name to ask for (default: the server's first)")
@workload_options
@click.option("--vocab-size", type=click.IntRange(10), help="draw token ids below this")
@click.option("--text", is_flag=True, help="send prompts as text, not as token ids")
@click.option(
    "--concurrency",
    "--max-concurrency",
    type=NumberList(int),
    help="streams of a closed loop; several, like 1,8,64, make a sweep",
)
@click.option(
    "--request-rate",
    type=NumberList(float),
    help="Poisson arrivals per second, inf for all at once; several make a sweep",
)
@click.option("--stream/--no-stream", default=None, help="default: streaming, or as the preset")
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--extra-body", help="JSON object of more fields for every request")
@click.option(
    "--client-processes",
    type=click.IntRange(1),
    help="default: half of the cores, at most 6 and at most one per stream",
)
@click.option("--timeout", default=3600.0, show_default=True, help="seconds for one request")
@click.option("--flush-cache", is_flag=True, help="empty the server's cache before each run")
@click.option("--goodput", help="count requests that keep this, like ttft:200,itl:20 (ms)")
@hardware_options
@report_options
@click.option("--plot", type=FILE, help="PNG of throughput against latency")
@click.option(
    "--profile", type=click.Path(file_okay=False, path_type=Path), help="torch trace of each run"
)
def serving(**params: Any) -> None:
    """Load an OpenAI-compatible server over /v1/completions.

    Without --concurrency or --request-rate all requests are sent at once, or as a preset or a
    trace's arrival times say.
    """
    from hpcserve.bench.environment import environment
    from hpcserve.bench.report import print_cells, print_json, write_json
    from hpcserve.bench.serving import ServingBenchmark

    chosen = _selection(params)
    plan, about = _serving_plan(params, chosen)
    cells = ServingBenchmark(plan, _note).run()
    result = {"benchmark": "serving", **about, "cells": cells, "environment": environment()}
    title = params["preset"] or chosen.name
    print_cells(cells, title)
    if params["plot"]:
        from hpcserve.bench.plot import plot_cells

        plot_cells(cells, params["plot"], title)
    if params["output"]:
        write_json(params["output"], {**result, "server_info": plan.server.info()})
    print_json(result)
    if not any(run["num_ok"] for cell in cells for run in cell["runs"]):
        raise SystemExit(EXIT_NOTHING_ANSWERED)


@command.command(cls=_WorkloadCommand)
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
    chosen = _selection(params)
    outcome = run_offline(
        config,
        chosen,
        seed=params["workload_seed"],
        repeats=params["repeats"],
        warmup=params["warmup"],
        frontend=params["frontend"],
        hardware=_hardware(params),
        trace_file=params["save_trace"],
        say=_note,
    )
    result = {"benchmark": "offline", "preset": params["preset"], **outcome}
    result["environment"] = environment()
    print_cells(result["cells"], params["preset"] or chosen.name)
    if params["output"]:
        write_json(params["output"], result)
    print_json(result)


@command.command("one-batch", cls=SectionedCommand)
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
        hardware=_hardware(params),
        say=_note,
    )
    result = {"benchmark": "one-batch", "rows": rows, "environment": environment()}
    print_rows(rows)
    if params["output"]:
        write_json(params["output"], result)
    print_json(result)


@command.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--command",
    "other",
    help="another server's command line, with {port} where the port belongs",
)
@click.option("--cold", is_flag=True, help="with empty folders for compiled kernels")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--timeout", default=900.0, show_default=True, help="seconds to wait for an answer")
@click.option("--show-log", is_flag=True, help="print the server's lines with their seconds")
@click.option("--output", "-o", type=FILE, help="write the whole result there (JSON)")
def startup(
    arguments: tuple[str, ...],
    other: str | None,
    cold: bool,
    repeats: int,
    timeout: float,
    show_log: bool,
    output: Path | None,
) -> None:
    """Time a server from the start of its process to its first answer.

    ARGUMENTS after -- go to `hpcserve serve`.
    """
    import shlex

    from hpcserve.bench.environment import environment
    from hpcserve.bench.report import print_json, write_json
    from hpcserve.bench.startup import hpcserve_command, measure_startup, print_startup
    from hpcserve.bench.summary import summarize

    if other and arguments:
        raise click.UsageError("give either --command or arguments of `hpcserve serve`")
    line = shlex.split(other) if other else hpcserve_command(list(arguments))
    runs = []
    for _ in range(repeats):
        times = measure_startup(line, cold=cold, timeout_s=timeout)
        print_startup(times, show_log=show_log)
        runs.append(times.figures())
    result = {
        "benchmark": "startup",
        "server_command": shlex.join(line),
        "cold": cold,
        "runs": runs,
        "summary": summarize(runs),
        "environment": environment(),
    }
    if output:
        write_json(output, result)
    print_json(result)


@command.command("make-model")
@click.argument("shape")
@click.argument("folder", type=click.Path(path_type=Path))
def make_model(shape: str, folder: Path) -> None:
    """Write a model FOLDER of a known SHAPE without weights, for --load-format dummy.

    Shapes: llama-3.1-8b, llama-3.1-70b, qwen2.5-14b, qwen3-0.6b, qwen3-30b-a3b.
    """
    from hpcserve.bench.stand_in import make_stand_in

    make_stand_in(shape, folder)
    _note(f"wrote {folder}; run it with --model {folder} --load-format dummy")


@command.command("self-test")
@click.option("--streams", type=click.IntRange(1), default=64, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=2000, show_default=True)
@click.option(
    "--servers", type=click.IntRange(1), help="null servers (default: half of the cores, at most 4)"
)
@click.option("--client-processes", type=click.IntRange(1), default=1, show_default=True)
def self_test(streams: int, tokens: int, servers: int | None, client_processes: int) -> None:
    """Flood the client from null servers: how many chunks a second can one process take?"""
    from hpcserve.bench.report import print_json
    from hpcserve.bench.self_test import self_test as run_self_test

    count = servers or max(1, min(4, _num_cores() // 2))
    result = run_self_test(
        streams=streams, tokens=tokens, num_servers=count, num_processes=client_processes
    )
    click.echo(
        f"{result['chunks_per_s_per_process']:,.0f} chunks/s per client process, which used "
        f"{result['client_cpu_share_max']:.0%} of a core: {result['chunks_per_cpu_s']:,.0f} chunks "
        f"per processor second, {result['chunks_per_read']:.2f} per read"
    )
    print_json(result)


@command.command("frontend")
@click.option("--streams", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--tokens", type=click.IntRange(2), default=1000, show_default=True, help="per stream"
)
@click.option(
    "--rate",
    type=click.FloatRange(min=1),
    default=50_000.0,
    show_default=True,
    help="tokens per second that the engine's stand-in makes, over all streams",
)
@click.option("--api-workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--client-processes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--output", type=FILE, help="write the result and where it comes from, as JSON")
def frontend(
    streams: int,
    tokens: int,
    rate: float,
    api_workers: int,
    client_processes: int,
    output: Path | None,
) -> None:
    """Put the HTTP server before an engine's stand-in: how many chunks a second can it send?"""
    from hpcserve.bench.environment import environment
    from hpcserve.bench.frontend import FrontendPlan, bench_frontend
    from hpcserve.bench.report import print_json, write_json

    result = bench_frontend(FrontendPlan(streams, tokens, rate, api_workers, client_processes))
    if output is not None:
        write_json(output, {**result, "environment": environment()})
    click.echo(
        f"{result['chunks_per_s_per_process']:,.0f} chunks/s per HTTP process, which used "
        f"{result['frontend_cpu_share']:.0%} of a core: {result['cpu_us_per_chunk']:.1f} us per "
        f"chunk, {result['tokens_per_chunk']:.2f} tokens per chunk"
    )
    print_json(result)


def _selection(params: dict[str, Any]) -> Selection:
    from hpcserve.bench.selection import select

    return select(
        workload=params["workload"],
        preset=params["preset"],
        trace=params["trace"],
        values=workload_values(params),
    )


def _serving_plan(params: dict[str, Any], chosen: Selection) -> tuple[ServingPlan, dict[str, Any]]:
    """The plan, and what the report says of it."""
    from hpcserve.bench.completion import RequestStyle
    from hpcserve.bench.goodput import Goodput
    from hpcserve.bench.load_point import points_of
    from hpcserve.bench.roofline import ModelCost
    from hpcserve.bench.serving import ServingPlan

    server = _server(params)
    entry = server.model()
    folder = params["model"] or server.model_folder(entry)
    seed, vocab_size = params["workload_seed"], _vocab_size(params["vocab_size"], folder)
    style = RequestStyle(
        model=params["served_model_name"] or entry["id"],
        stream=_streams(params["stream"], chosen),
        temperature=params["temperature"],
        top_p=params["top_p"],
        extra_body=_json_object(params["extra_body"]),
        headers=server.headers,
    )
    points = points_of(
        _concurrencies(params, chosen),
        params["request_rate"] or [],
        has_arrivals=chosen.has_arrivals,
    )
    plan = ServingPlan(
        server=server,
        style=style,
        draw=_draw(params, chosen, folder, vocab_size),
        points=points,
        workload=chosen.workload,
        seed=seed,
        repeats=params["repeats"],
        warmup=params["warmup"],
        flush_cache=params["flush_cache"],
        num_processes=params["client_processes"] or max(1, min(6, _num_cores() // 2)),
        timeout_s=params["timeout"],
        goodput=Goodput.parse(params["goodput"]) if params["goodput"] else None,
        cost=ModelCost.of_folder(folder) if folder else None,
        hardware=_hardware(params),
        profile=params["profile"],
    )
    about = {
        "preset": params["preset"],
        "workload": chosen.describe(seed=seed, vocab_size=vocab_size),
        "request": {
            "stream": style.stream,
            "temperature": style.temperature,
            "top_p": style.top_p,
            "text": params["text"],
            "extra_body": style.extra_body,
        },
        "server": {"base_url": server.base_url, "model": style.model, "folder": str(folder)},
    }
    return plan, about


def _server(params: dict[str, Any]) -> Server:
    from hpcserve.bench.connection import Target
    from hpcserve.bench.probe import Server
    from hpcserve.envs import HPCSERVE_API_KEY

    target = Target.parse(params["base_url"])
    key = params["api_key"] or HPCSERVE_API_KEY.get()
    return Server(target.url, {"Authorization": f"Bearer {key}"} if key else {})


def _draw(
    params: dict[str, Any], chosen: Selection, folder: Path | None, vocab_size: int
) -> Callable[[int], list[Any]]:
    from hpcserve.bench.selection import as_text
    from hpcserve.bench.trace import save_trace

    draw = chosen.drawer(seed=params["workload_seed"], vocab_size=vocab_size)
    if params["text"]:
        if folder is None:
            raise click.UsageError("--text needs the model's folder: name it with --model")
        drawn, draw = draw, lambda run: as_text(drawn(run), folder)
    if params["save_trace"]:
        save_trace(params["save_trace"], draw(1))
    return draw


def _streams(asked: bool | None, chosen: Selection) -> bool:
    if asked is not None:
        return asked
    return chosen.preset.stream if chosen.preset else True


def _concurrencies(params: dict[str, Any], chosen: Selection) -> list[int]:
    if params["concurrency"] is None and not params["request_rate"] and chosen.preset:
        return [chosen.preset.concurrency] if chosen.preset.concurrency else []
    return params["concurrency"] or []


def _vocab_size(asked: int | None, folder: Path | None) -> int:
    from hpcserve.bench.token_source import DEFAULT_VOCAB_SIZE
    from hpcserve.config.checkpoint import CheckpointConfig

    if asked is not None:
        return asked
    return CheckpointConfig.load(folder).vocab_size if folder else DEFAULT_VOCAB_SIZE


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--extra-body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise click.UsageError("--extra-body must be a JSON object")
    return found


def _hardware(params: dict[str, Any]) -> Hardware:
    from hpcserve.bench.roofline import Hardware

    return Hardware(params["bandwidth"], params["peak_flops"], params["num_gpus"])


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _note(text: str) -> None:
    click.echo(text, err=True)
