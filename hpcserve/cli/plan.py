"""`hpcserve plan`: what a model needs, from its config.json alone."""

from __future__ import annotations

from typing import Any

import click

from hpcserve.cli._jobs import print_json


@click.command()
@click.argument("model_argument", metavar="[MODEL]", required=False)
@click.option("--model", "--model-path", help="the same as MODEL")
@click.option("--gpu", "gpu_name", default="h200", show_default=True, help="kind of GPU")
@click.option("--gpus-per-node", "node_gpus", type=click.IntRange(1), default=8, show_default=True)
@click.option("-N", "--nodes", type=click.IntRange(1), help="nodes to use; default: as few as do")
@click.option(
    "-tp",
    "--tp",
    "--tp-size",
    "--tensor-parallel-size",
    type=click.IntRange(1),
    help="instead of the suggested layout",
)
@click.option("-pp", "--pp", "--pp-size", "--pipeline-parallel-size", type=click.IntRange(1))
@click.option("-dp", "--dp", "--dp-size", "--data-parallel-size", type=click.IntRange(1))
@click.option("--max-model-len", "--context-length", "context", type=click.IntRange(1))
@click.option("--gpu-memory-utilization", "--mem-fraction-static", "share", default=0.88)
@click.option("--max-num-seqs", "--max-running-requests", "sequences", default=1024)
@click.option("--max-num-batched-tokens", "--chunked-prefill-size", "tokens", default=8192)
@click.option("--dtype", default="auto")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(
    model_argument: str | None,
    model: str | None,
    gpu_name: str,
    node_gpus: int,
    nodes: int | None,
    tp: int | None,
    pp: int | None,
    dp: int | None,
    context: int | None,
    share: float,
    sequences: int,
    tokens: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Estimate memory per GPU, the largest context and concurrency, a layout, and tokens/s.

    MODEL is its folder. Speeds are the hardware's bounds (the roofline): no engine is faster.
    """
    from hpcserve.errors import ConfigError, UsageError
    from hpcserve.launcher.layout import infer_layout
    from hpcserve.launcher.plan.estimate import estimate
    from hpcserve.launcher.plan.gpus import gpu
    from hpcserve.launcher.plan.shape import load_shape
    from hpcserve.launcher.plan.suggest import expert_parallel, suggest

    model = model_argument or model
    if model is None:
        raise UsageError("name the model: hpcserve plan /models/NAME")
    shape, kind = load_shape(model, dtype), gpu(gpu_name)
    options: dict[str, Any] = {
        "context": context,
        "mem_fraction": share,
        "max_batched_tokens": tokens,
        "max_num_seqs": sequences,
    }
    if tp or pp or dp:
        if nodes is not None:  # the same arithmetic as of `submit`
            layout = infer_layout(tp=tp, pp=pp, dp=dp, nodes=nodes, gpus_per_node=node_gpus)
            tp, pp, dp = layout.tp, layout.pp, layout.dp
        found = estimate(
            shape, kind, tp=tp or 1, pp=pp or 1, dp=dp or 1, node_gpus=node_gpus, **options
        )
    else:
        suggested = suggest(shape, kind, node_gpus=node_gpus, nodes=nodes, **options)
        if suggested is None:
            raise ConfigError(
                f"{model} does not fit {nodes or 16} nodes of {node_gpus} {kind.name}; give more "
                "nodes, or a shorter --max-model-len"
            )
        found = suggested
    ep = expert_parallel(shape, found.tp)
    if as_json:
        print_json(
            {
                "model": model,
                "gpu": kind.name,
                "parameters": shape.parameters,
                "active_parameters": shape.active,
                "ep": ep,
                **found.as_json(),
            }
        )
    else:
        _print(model, kind.name, shape.parameters, shape.active, ep, found)
    if not found.fits:
        click.echo("it does not fit: no room for one sequence", err=True)
        click.get_current_context().exit(1)


def _print(model: str, gpu: str, parameters: int, active: int, ep: int, found: Any) -> None:
    gib = 1 << 30
    layout = f"--tp {found.tp} --pp {found.pp} --dp {found.dp}" + (f" --ep {ep}" if ep > 1 else "")
    unit, word = (1e9, "billion") if parameters >= 1e8 else (1e6, "million")
    count = f"{parameters / unit:.2f} {word} parameters"
    count += f", {active / unit:.2f} of them used by a token" if active < 0.9 * parameters else ""
    rows = {
        "model": f"{model}: {count}",
        "layout": f"{layout}  ({found.tp * found.pp * found.dp} x {gpu})",
        "weights": f"{found.weights_bytes / gib:.2f} GiB per GPU",
        "activations": f"{found.activation_bytes / gib:.2f} GiB per GPU",
        "CUDA graphs": f"{found.graph_bytes / gib:.2f} GiB per GPU",
        "KV cache": f"{found.free_for_kv_bytes / gib:.2f} GiB per GPU, "
        f"{found.kv_bytes_per_token:,} bytes a token: {found.kv_tokens:,} tokens per replica",
        "context": f"{found.largest_context:,} tokens at most",
        "concurrency": f"{found.concurrency:,} sequences of {found.context:,} tokens",
        "decode": f"at best {found.decode_ms_one:.2f} ms per token for one, "
        f"{found.decode_tokens_per_s:,.0f} tokens/s for all",
        "prefill": f"at best {found.prefill_tokens_per_s:,.0f} tokens/s",
    }
    for name, value in rows.items():
        click.echo(f"{name:<12} {value}")
