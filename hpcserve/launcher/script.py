"""From a request to the words of its batch script; the template only lays them out."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcserve import envs
from hpcserve._version import __version__
from hpcserve.config.load import Setting
from hpcserve.config.slurm import DIRECTIVES
from hpcserve.errors import ConfigError
from hpcserve.launcher.container import _select as runtimes
from hpcserve.launcher.container.base import ContainerSpec
from hpcserve.launcher.container.docker import TASK_SCRIPT
from hpcserve.launcher.fabric import _select as fabrics
from hpcserve.launcher.fabric.base import Setting as Variable
from hpcserve.launcher.request import JobRequest
from hpcserve.launcher.template import quote, render

#: SLURM may send its early warning up to 60 s early; this much later than asked never.
SIGNAL_LEAD_S = 30


@dataclass(frozen=True)
class Line:
    """A piece of the script and where it comes from."""

    text: str
    origin: str


def render_script(request: JobRequest, *, launcher: str = "slurm") -> str:
    """The batch script, whole. The same request gives the same text.

    launcher: local and debug are for this machine, without SLURM; nothing but `srun`, the `#SBATCH`
    lines and where the words go differs.
    """
    local = launcher != "slurm"
    runtime = runtimes.choose(request.cluster.container_runtime, request.cluster.container)
    pairs = [pair.partition("=") for pair in request.cluster.env]
    variables = [Variable(name, value, "--env") for name, _, value in pairs]
    defaults = _defaults(request)
    spec = ContainerSpec(
        image=request.cluster.container or "",
        mounts=_mounts(request),
        env_names=tuple(dict.fromkeys([*_OURS, *(v.name for v in (*variables, *defaults))])),
        users_env=tuple(one.name for one in variables),
        gpus=request.layout.gpus_per_node > 0,
    )
    container = runtime.prefix(spec)
    if local and runtime.name == "pyxis":
        raise ConfigError("pyxis is a part of srun: name another --container-runtime")
    values: dict[str, Any] = {
        "version": __version__,
        "title": _title(request),
        "notes": _notes(request),
        "directives": [] if local else directives(request),
        "options": _option_lines(request),
        "run_dir": str(request.run_dir),
        "state_dir": str(envs.HPCSERVE_STATE_DIR.get()),
        "is_array": request.job.replicas > 1,
        "modules": request.cluster.module,
        "setup": [*(_local_lines(launcher) if local else []), *request.cluster.setup],
        "variables": variables,
        "defaults": defaults,
        "runtime": runtime.name,
        "task_script": str(TASK_SCRIPT) if container and container[0][0] == "bash" else "",
        "srun": [] if local else [*_srun_words(request), *runtime.srun_options(spec)],
        "container": container,
        "node": _node_words(request, in_container=runtime.name != "none"),
        "supervisor": _supervisor_words(request),
    }
    custom = Path(request.job.sbatch_template) if request.job.sbatch_template else None
    return render(f"{request.kind}.sbatch.j2", values, custom)


_OURS = ("HPCSERVE_RUN_DIR", "HPCSERVE_STATE_DIR")


def _title(request: JobRequest) -> str:
    layout = request.layout
    gpus = f" x {layout.gpus_per_node} GPUs" if layout.gpus_per_node else ""
    verb = "Serves" if request.kind == "serve" else "Answers a file of prompts with"
    parallel = f"tp {layout.tp}, pp {layout.pp}, dp {layout.dp}"
    nodes = "1 node" if layout.nodes == 1 else f"{layout.nodes} nodes"
    model = request.engine.model.model or "the bundled tiny-chat"
    return f"{verb} {model} on {nodes}{gpus} ({parallel})."


def _notes(request: JobRequest) -> list[str]:
    layout = request.layout
    logs = quote(str(request.job_dir.logs))
    left = [f"--{name.replace('_', '-')}" for name in _USUAL if not _is_asked_for(request, name)]
    notes = [f"Left to the site's defaults: {', '.join(left)}"] if left else []
    if request.job.replicas > 1:
        logs = f"{quote(str(request.run_dir))}/tasks/{{0..{request.job.replicas - 1}}}/logs"
    notes.append(f"Before it is submitted by hand: mkdir -p -m 700 {logs}")
    return [*notes, layout.warning] if layout.warning else notes


#: What most jobs at most sites say.
_USUAL = ("account", "partition", "time", "cpus_per_task", "mem")


def _is_asked_for(request: JobRequest, name: str) -> bool:
    extra = {one.lstrip("-").partition("=")[0] for one in request.slurm.sbatch}
    whole_nodes = name in ("mem", "cpus_per_task") and bool(request.slurm.exclusive)
    given = getattr(request.slurm, name) is not None
    return given or whole_nodes or name.replace("_", "-") in extra


# ---------------------------------------------------------------- #SBATCH


def directives(request: JobRequest) -> list[Line]:
    """The `#SBATCH` lines: SLURM's options that were given or follow, then what we always ask."""
    values = {name: getattr(request.slurm, name) for name in DIRECTIVES}
    origins = {name: request.settings[name].origin for name in DIRECTIVES}
    _fill_in(request, values, origins)
    lines = [
        Line(_flag(name.replace("_", "-"), values[name]), origins[name])
        for name in DIRECTIVES
        if values[name] is not None
    ]
    logs = request.job_dir.task("%a") if request.job.replicas > 1 else request.job_dir
    plain = str(logs.job_log)
    # In a log's name SLURM reads % as a pattern; a doubled one is itself.
    pattern = plain.replace("%", "%%").replace("tasks/%%a/", "tasks/%a/")
    lines += [
        Line("--ntasks-per-node=1", "one task starts its node's ranks"),
        Line(_flag("output", pattern), "run directory"),
        Line("--open-mode=append", "a requeued job keeps its log"),
    ]
    if request.job.replicas > 1:
        why = "--replicas" if request.kind == "serve" else "--jobs: one worker each"
        lines.append(Line(f"--array=0-{request.job.replicas - 1}", why))
    return lines + [
        Line(_extra(key), request.settings["sbatch"].origin) for key in request.slurm.sbatch
    ]


def _fill_in(request: JobRequest, values: dict[str, Any], origins: dict[str, str]) -> None:
    """What follows from the layout and from how the job is to end."""
    layout, cluster = request.layout, request.cluster

    def put(name: str, value: Any, origin: str) -> None:
        if values[name] is None:
            values[name], origins[name] = value, origin

    put("job_name", request.name, "from the model's name")
    put("nodes", layout.nodes, "inferred from tp, pp and dp")
    if layout.gpus_per_node == 0 or cluster.gpu_request == "none":
        values["gpus_per_node"] = None
    elif values["gres"] is None and cluster.gpu_request == "gres":
        values["gpus_per_node"] = None
        put("gres", f"gpu:{layout.gpus_per_node}", "inferred; --gpu-request gres")
    elif values["gres"] is None:
        put("gpus_per_node", layout.gpus_per_node, "inferred from tp, pp and dp")
    lead = math.ceil(request.job.job_drain_s) + SIGNAL_LEAD_S
    put("signal", f"B:USR1@{lead}", "warns the supervisor ahead of the drain")
    if request.job.continue_with != "none":
        put("requeue", True, "--continue-with")


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={quote(value)}"


def _extra(key: str) -> str:
    """KEY or KEY=VALUE of --sbatch and --srun, as one word of shell."""
    name, equals, value = key.lstrip("-").partition("=")
    return f"--{name}={quote(value)}" if equals else f"--{name}"


# ---------------------------------------------------------------- the command


def _srun_words(request: JobRequest) -> list[str]:
    words = [
        "srun",
        f"--nodes={request.layout.nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        "--wait=60",
        "--mpi=none",
        "--export=ALL",
        "--open-mode=append",
        '--output="${HPCSERVE_RUN_DIR//%/%%}/logs/rank-%t.log"',
    ]
    if request.slurm.cpus_per_task:  # srun does not inherit it from sbatch
        words.append(f"--cpus-per-task={request.slurm.cpus_per_task}")
    words += [_extra(key) for key in request.slurm.srun]
    if not any(word.startswith("--cpu-bind") for word in words):
        words.append("--cpu-bind=none")
    return words


def _local_lines(launcher: str) -> list[str]:
    """submitit's controller hides all GPUs from a job that asks for none: show them again. And an
    allocation that it was submitted in is not the job's: it runs on this machine alone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = f"export CUDA_VISIBLE_DEVICES={quote(visible)}" if visible is not None else None
    log = '"$HPCSERVE_RUN_DIR/logs/job.log"'
    words = f"exec > >(tee -ia {log}) 2>&1" if launcher == "debug" else f"exec >>{log} 2>&1"
    return ['unset "${!SLURM_@}"', gpus or "unset CUDA_VISIBLE_DEVICES", words]


def _node_words(request: JobRequest, *, in_container: bool) -> list[list[str]]:
    python = ["hpcserve"] if in_container else [quote(request.python), "-m", "hpcserve"]
    cluster = request.cluster
    words = [[*python, "node", "--run-dir", '"$HPCSERVE_RUN_DIR"']]
    if request.kind != "serve":
        words.append(["--verb", request.kind])
    words.append(
        ["--fabric", cluster.fabric, *(["--require-fabric"] if cluster.require_fabric else [])]
    )
    for flag, value in (("--ifname", cluster.ifname), ("--ib-hca", cluster.ib_hca)):
        words += [[flag, quote(value)]] if value else []
    words.append(["--drain", f"{request.job.job_drain_s:g}", "--preflight", request.job.preflight])
    if request.job.engine_command:
        words.append(["--engine-command", quote(request.job.engine_command)])
    return [*words, ["--"], *_by_option(request.engine_words)]


def _by_option(arguments: tuple[str, ...]) -> list[list[str]]:
    """One line for each option and its value."""
    lines: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or not lines or len(lines[-1]) > 1:
            lines.append([quote(word)])
        else:
            lines[-1].append(quote(word))
    return lines


def _supervisor_words(request: JobRequest) -> list[list[str]]:
    job = request.job
    words = [[quote(request.python), "-m", "hpcserve", "job"]]
    words.append(["--run-dir", '"$HPCSERVE_RUN_DIR"', "--kind", request.kind])
    words.append(["--continue-with", job.continue_with, "--max-restarts", str(job.max_restarts)])
    words.append(["--drain", f"{job.job_drain_s:g}", "--ready-timeout", f"{job.ready_timeout_s:g}"])
    words.append(["--rank-timeout", f"{job.rank_timeout_s:g}"])
    if not job.auth:
        words.append(["--no-auth"])
    if job.preflight == "full":
        ifname = request.cluster.ifname
        words.append(["--all-reduce", *(["--ifname", quote(ifname)] if ifname else [])])
    return words


# ---------------------------------------------------------------- variables, mounts, comments


def _defaults(request: JobRequest) -> list[Variable]:
    cluster = request.cluster
    found = fabrics.static_settings(
        cluster.fabric, require=cluster.require_fabric, ib_hca=cluster.ib_hca
    )
    # A folder of one's own: in another's, code of theirs would be loaded.
    own = f"/tmp/hpcserve-cache-{os.getuid()}"
    folder = cluster.cache_dir or (own if cluster.container else None)
    if folder:
        why = "--cache-dir" if cluster.cache_dir else "outside of $HOME, which images fill"
        found.append(Variable("HPCSERVE_CACHE_DIR", folder, why))
        found.append(Variable("TRITON_CACHE_DIR", f"{folder}/triton", why))
        found.append(Variable("TORCHINDUCTOR_CACHE_DIR", f"{folder}/inductor", why))
    if folder and request.cluster.container:
        found.append(Variable("APPTAINER_CACHEDIR", f"{folder}/apptainer", why))
    return found


def _mounts(request: JobRequest) -> tuple[str, ...]:
    """The user's, then what the job itself needs: run directory, model, files, cache."""
    own = [request.run_dir, *request.paths]
    if request.cluster.cache_dir:
        own.append(Path(request.cluster.cache_dir))
    # An array's run directory holds its tasks' folders; a folder inside another needs no mount.
    own = [path for path in own if not any(path != o and path.is_relative_to(o) for o in own)]
    mounts = [*request.cluster.mount, *(f"{path}:{path}" for path in dict.fromkeys(own))]
    return tuple(mounts)


def _option_lines(request: JobRequest) -> list[Line]:
    """Everything that was chosen and is no `#SBATCH` line, with its origin."""
    secret = {"api_key"}
    lines = []
    for name, one in request.settings.items():
        if one.is_default or name in DIRECTIVES or name in secret or name in ("sbatch", "run_dir"):
            continue
        lines.append(Line(f"{name} = {_shown(one)}", one.origin))
    return lines


def _shown(setting: Setting) -> str:
    value = setting.value
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
