"""`hpcserve bench serving`: load on a server, from a workload to a plan to a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcserve.bench.cli_options import (
    FILE,
    NumberList,
    hardware_of,
    hardware_options,
    note,
    num_cores,
    report_options,
    selection_of,
    workload_options,
)
from hpcserve.cli._bench_command import WorkloadCommand

if TYPE_CHECKING:
    from hpcserve.bench.probe import Server
    from hpcserve.bench.selection import Selection
    from hpcserve.bench.serving import ServingPlan

DEFAULT_URL = "http://127.0.0.1:30000"
EXIT_NOTHING_ANSWERED = 1


@click.command(cls=WorkloadCommand)
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
    "--profile",
    type=click.Path(file_okay=False, path_type=Path),
    help="torch trace of each rank and run; the server needs --profile-dir",
)
def serving(**params: Any) -> None:
    """Load an OpenAI-compatible server over /v1/completions.

    Without --concurrency or --request-rate all requests are sent at once, or as a preset or a
    trace's arrival times say.
    """
    from hpcserve.bench.environment import environment
    from hpcserve.bench.report import print_cells, print_json, write_json
    from hpcserve.bench.serving import ServingBenchmark

    chosen = selection_of(params)
    plan, about = _serving_plan(params, chosen)
    cells = ServingBenchmark(plan, note).run()
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
        num_processes=params["client_processes"] or max(1, min(6, num_cores() // 2)),
        timeout_s=params["timeout"],
        goodput=Goodput.parse(params["goodput"]) if params["goodput"] else None,
        cost=ModelCost.of_folder(folder) if folder else None,
        hardware=hardware_of(params),
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
