"""From parsed options to a submitted job; shared by submit, render and batch."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hpcserve._version import __version__
from hpcserve.cli._jobs import layered_settings
from hpcserve.cli.options import engine_config
from hpcserve.config.batch import BatchConfig
from hpcserve.config.engine import EngineConfig
from hpcserve.config.load import Setting
from hpcserve.errors import ConfigError, OutputError
from hpcserve.launcher.base import Launcher
from hpcserve.launcher.files import write_atomically
from hpcserve.launcher.job_dir import JobDir, register
from hpcserve.launcher.request import (
    SERVE_CONFIGS,
    JobRequest,
    batch_words,
    existing_paths,
    make_request,
    server_words,
    with_workers,
)


def serve_request(
    ctx: click.Context, model: str | None, cluster: str | None, preset: str | None
) -> JobRequest:
    """What `submit` and `render submit` mean by their options."""
    settings = layered_settings(ctx, SERVE_CONFIGS, cluster, preset)
    engine = engine_config(settings, model)
    files = existing_paths(engine.model.model, engine.model.tokenizer, engine.model.chat_template)
    words = server_words(settings, _model_word(engine.model.model))
    return make_request("serve", engine, settings, words, files)


def batch_request(
    ctx: click.Context,
    batch_config: BatchConfig,
    settings: Mapping[str, Setting],
    engine: EngineConfig,
) -> JobRequest:
    """What `batch --launcher slurm` means: the same command, run on the nodes.

    Raises ConfigError for stdin and stdout, which a job has no part in.
    """
    if "-" in (*batch_config.inputs, batch_config.output):
        raise ConfigError("a job reads and writes files, not - ; --launcher local takes a pipe")
    *inputs, output = (
        str(Path(one).absolute()) for one in (*batch_config.inputs, batch_config.output)
    )
    words = batch_words(settings, _model_word(engine.model.model), inputs, output)
    model = engine.model
    files = (model.model, model.tokenizer, model.chat_template, batch_config.prompt_template)
    paths = existing_paths(*files, *inputs, str(Path(output).parent))
    return make_request("batch", engine, with_workers(settings), words, paths)


def _model_word(model: str) -> str:
    """A folder as an absolute path, since the job may run elsewhere; a hub name as it is."""
    return str(next(iter(existing_paths(model)), model)) if model else model


def make_launcher(name: str) -> tuple[Launcher, str]:
    """(launcher, its name): slurm, local or debug; auto is SLURM where it is."""
    from hpcserve.launcher import slurm_query

    if name == "slurm" or (name == "auto" and slurm_query.is_here()):
        from hpcserve.launcher.slurm import SlurmLauncher

        return SlurmLauncher(), "slurm"
    if name == "debug":
        from hpcserve.launcher.debug import DebugLauncher

        return DebugLauncher(), name
    from hpcserve.launcher.local import LocalLauncher

    return LocalLauncher(), "local"


def submit(request: JobRequest, launcher: str, argv: Sequence[str] = ()) -> str:
    """Prepare the run directory, submit, and let the job be found again; returns its id."""
    from hpcserve.launcher.script import render_script

    chosen, kind = make_launcher(launcher)
    if kind != "slurm":
        _refuse_several_nodes(request, launcher)
    script = render_script(request, launcher=kind)
    job_dir = JobDir.create(request.run_dir)
    if job_dir.job.is_file() and not request.job.run_dir:
        raise ConfigError(f"the run directory {job_dir.path} is in use; name another --run-dir")
    _refuse_in_use(job_dir)
    _prepare(job_dir, request)
    for number in range(request.job.replicas if request.job.replicas > 1 else 0):
        task = JobDir.create(job_dir.task(str(number)).path)
        if job_dir.api_key.is_file():  # one for all: clients may not know which one they reach
            write_atomically(task.api_key, job_dir.api_key.read_text(encoding="utf-8"), mode=0o600)
        else:
            task.api_key.unlink(missing_ok=True)
        _clear(task)
    job_dir.update_job(**_description(request, argv))
    job_id = chosen.submit(script, request.run_dir, replicas=request.job.replicas)
    try:
        job_dir.add_job_ids(job_id)
        register(job_id, job_dir.path)
    except OutputError as error:
        raise OutputError(
            f"job {job_id} is submitted, but cannot be noted: {error}; it runs all the same, "
            f"`hpcserve status {shlex.quote(str(job_dir.path))}` may find it, or `scancel` ends it"
        ) from error
    return job_id


def _refuse_several_nodes(request: JobRequest, launcher: str) -> None:
    """This machine is one node; who finds no SLURM where it was expected hears of that."""
    nodes, found = request.layout.nodes, "there is no sbatch on PATH"
    if launcher != "auto":
        found = f"--launcher {launcher} runs on this machine alone"
    elif nodes == 1:
        click.echo(f"{found}: the job runs on this machine, without SLURM", err=True)
    if nodes > 1:
        raise ConfigError(
            f"{nodes} nodes need SLURM, and {found}; submit from a login node of the cluster (its "
            "SLURM may be a module to load), or ask for what one node has"
        )


def _refuse_in_use(job_dir: JobDir) -> None:
    """Two jobs in one folder would take each other's files for their own."""
    from hpcserve.launcher.replicas import servers_of
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.status import statuses

    if not job_dir.read_job().get("job_ids"):
        return
    ref = find(f"{job_dir.path}/")
    one = next(
        (one for one in statuses(servers_of(ref), thorough=True) if not one.state.over), None
    )
    if one is not None:
        raise ConfigError(
            f"job {one.job_id} in the run directory {job_dir.path} is {one.state.value}; "
            f"`hpcserve cancel {ref.job_id}` ends it, or name another --run-dir"
        )


def _prepare(job_dir: JobDir, request: JobRequest) -> None:
    """A key for the clients; what an earlier job in the same folder said is taken away."""
    key = request.settings["api_key"].value if "api_key" in request.settings else None
    if key:
        write_atomically(job_dir.api_key, f"{key}\n", mode=0o600)
    elif request.kind == "serve" and request.job.auth:
        job_dir.ensure_api_key()
    else:  # of an earlier job in the same folder: the nodes take a key where there is one
        job_dir.api_key.unlink(missing_ok=True)
    _clear(job_dir)


def _clear(job_dir: JobDir) -> None:
    for path in (job_dir.state, job_dir.endpoint, job_dir.control, job_dir.events):
        path.unlink(missing_ok=True)


def _description(request: JobRequest, argv: Sequence[str]) -> dict[str, Any]:
    return {
        "name": request.name,
        "kind": request.kind,
        "model": request.engine.model.model,
        "layout": vars(request.layout),
        "replicas": request.job.replicas,
        "command_line": list(argv or sys.argv),
        "login_host": request.cluster.login_host,
        "created_at": time.time(),
        "version": __version__,
        "settings": {
            name: {"value": one.value, "origin": one.origin}
            for name, one in request.settings.items()
            if not one.is_default and name != "api_key"
        },
    }


def say_script(request: JobRequest) -> None:
    """The batch script alone on stdout; what a reader should know besides, on stderr."""
    from hpcserve.launcher.script import render_script

    click.echo(render_script(request), nl=False)
    if request.layout.warning:
        click.echo(f"note: {request.layout.warning}", err=True)


def say_submitted(request: JobRequest, job_id: str) -> None:
    """What a user does next, ready to be copied."""
    lines = [
        f"job {job_id}  {request.name}",
        f"run directory  {request.run_dir}",
        "",
        f"  hpcserve wait {job_id}              until it answers",
        f'  eval "$(hpcserve endpoint {job_id} --env)"   sets OPENAI_BASE_URL and OPENAI_API_KEY',
        f"  hpcserve logs {job_id} -f           what it says",
        f"  hpcserve cancel {job_id}            ends it",
    ]
    if request.kind == "batch":
        lines = [line for line in lines if "endpoint" not in line]
        lines = [line.replace("until it answers", "until it is done") for line in lines]
        output = request.engine_words[request.engine_words.index("--output") + 1]
        lines.append(f"  hpcserve batch status {shlex.quote(output)}   rows, speed, time left")
    if request.kind == "serve" and request.job.replicas > 1:
        lines = [line for line in lines if "endpoint" not in line]
        lines.append(f"  hpcserve route {job_id}             one address in front of all")
    click.echo("\n".join(lines))
    if request.layout.warning:
        click.echo(f"note: {request.layout.warning}", err=True)
