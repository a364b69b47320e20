"""What a user asked for, resolved: every option with its origin, and the layout that follows."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.config.cluster import ClusterConfig
from hpcserve.config.engine import PARTS, EngineConfig
from hpcserve.config.job import JobConfig
from hpcserve.config.load import Setting, build
from hpcserve.config.server import ServerConfig
from hpcserve.config.slurm import SlurmConfig
from hpcserve.errors import ConfigError
from hpcserve.launcher.job_dir import JobDir, default_run_dir
from hpcserve.launcher.layout import Layout, infer_layout

_Paths = TypeVar("_Paths", ClusterConfig, JobConfig)

#: Every option that `submit` and `render submit` take.
SERVE_CONFIGS: tuple[type[Any], ...] = (
    SlurmConfig,
    ClusterConfig,
    JobConfig,
    ServerConfig,
    *PARTS.values(),
)


#: Every option that `batch` and `render batch` take.
BATCH_CONFIGS: tuple[type[Any], ...] = (
    BatchConfig,
    RowDefaults,
    SlurmConfig,
    ClusterConfig,
    JobConfig,
    *PARTS.values(),
)


@dataclass(frozen=True)
class JobRequest:
    """kind: serve or batch.  engine_words: the engine's command line, after its verb.

    settings: every option by field name, with its origin.
    paths: files and folders that a container must see.
    """

    kind: str
    engine: EngineConfig
    slurm: SlurmConfig
    cluster: ClusterConfig
    job: JobConfig
    layout: Layout
    name: str
    run_dir: Path
    engine_words: tuple[str, ...]
    settings: Mapping[str, Setting]
    paths: tuple[Path, ...] = ()
    python: str = field(default=sys.executable)

    @property
    def job_dir(self) -> JobDir:
        return JobDir(self.run_dir)


def make_request(
    kind: str,
    engine: EngineConfig,
    settings: Mapping[str, Setting],
    engine_words: Sequence[str],
    paths: Sequence[Path] = (),
) -> JobRequest:
    """Resolve layout, name and run directory.

    Raises ConfigError for a layout that does not come out, and for options that contradict.
    """
    slurm, cluster = build(SlurmConfig, settings), _at_home(build(ClusterConfig, settings))
    job = _at_home(build(JobConfig, settings))
    for one in _SET_BY_THE_LAUNCHER:
        if not settings[one].is_default:
            raise ConfigError(f"{one} is set by the job itself on each node; give --nodes instead")
    for key in slurm.sbatch:
        name = key.lstrip("-").partition("=")[0]
        if name in _NOT_BY_SBATCH:
            raise ConfigError(f"--sbatch {name}: {_NOT_BY_SBATCH[name]}")
    layout = layout_of(engine, slurm, cluster, settings)
    engine = engine.replace(tp_size=layout.tp)
    name = slurm.job_name or f"hpcserve-{Path(engine.model.model).name or 'tiny-chat'}"
    run_dir = Path(job.run_dir) if job.run_dir else default_run_dir(name)
    words = [*engine_words]
    if layout.tp > 1 and "--tp" not in words:
        words += ["--tp", str(layout.tp)]
    return JobRequest(
        kind=kind,
        engine=engine,
        slurm=slurm,
        cluster=cluster,
        job=job,
        layout=layout,
        name=name,
        run_dir=run_dir.absolute(),
        engine_words=tuple(words),
        settings=settings,
        paths=tuple(paths),
        python=_python(cluster),
    )


def _at_home(config: _Paths) -> _Paths:
    """With ~ as a folder: a shell sees to that, in a file of options nobody does."""
    given = {name: getattr(config, name) for name in _PATHS if getattr(config, name, None)}
    homes: dict[str, Any] = {
        name: tuple(map(_expanded, value)) if isinstance(value, tuple) else _expanded(value)
        for name, value in given.items()
    }
    return dataclasses.replace(config, **homes)


def _expanded(text: str) -> str:
    return os.path.expanduser(text)  # noqa: PTH111 - a Path would make one slash of docker://


def layout_of(
    engine: EngineConfig,
    slurm: SlurmConfig,
    cluster: ClusterConfig,
    settings: Mapping[str, Setting],
) -> Layout:
    def given(name: str) -> int | None:
        return None if settings[name].is_default else int(getattr(engine.parallel, name))

    return infer_layout(
        tp=given("tp_size"),
        pp=given("pp_size"),
        dp=given("dp_size"),
        nodes=slurm.nodes,
        gpus_per_node=slurm.gpus_per_node,
        node_gpus=cluster.node_gpus,
        on_gpus=engine.backend.device != "cpu" and cluster.gpu_request != "none",
    )


def server_words(settings: Mapping[str, Setting], model: str) -> tuple[str, ...]:
    """The command line of `hpcserve serve` in a job: what was asked for, and a free port.

    The key goes by a file that only the user can read, never by a command line.
    """
    from hpcserve.launcher.engine_command import option_words

    kept = {
        name: one.value
        for name, one in settings.items()
        if not one.is_default and name not in _SET_BY_THE_JOB
    }
    configs = (*PARTS.values(), ServerConfig)
    host, port = settings["host"], settings["port"]
    fixed = ["--model", model] if model else []  # without one the engine takes its own
    fixed += ["--host", "0.0.0.0" if host.is_default else str(host.value)]
    fixed += ["--port", "0" if port.is_default else str(port.value)]
    fixed += ["--drain-timeout", str(settings["job_drain_s"].value)]
    return (*fixed, *option_words(kept, configs))


def batch_words(
    settings: Mapping[str, Setting], model: str, inputs: Sequence[str], output: str
) -> tuple[str, ...]:
    """The command line of `hpcserve batch` in a job: the same run, on the nodes at once."""
    from hpcserve.launcher.engine_command import option_words

    kept = {
        name: one.value
        for name, one in settings.items()
        if not one.is_default and name not in _SAID_OTHERWISE
    }
    if kept.get("prompt_template"):
        kept["prompt_template"] = str(Path(kept["prompt_template"]).expanduser().absolute())
    words = [*inputs, "--output", output, "--launcher", "local"]
    # Said, since variables and files of the user reach the nodes too.
    words += [] if settings["jobs"].is_default else ["--jobs", "1"]
    words += [] if settings["fresh"].is_default else ["--no-fresh"]
    words += ["--model", model] if model else []
    if settings["drain_s"].is_default:
        # What the job's drain leaves, less the time to write and to end the engine.
        job_s = float(settings["job_drain_s"].value)
        words += ["--row-drain", f"{max(job_s - _BATCH_END_S, job_s / 2):g}"]
    return (*words, *option_words(kept, (BatchConfig, RowDefaults, *PARTS.values())))


def with_workers(settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
    """Workers of a batch run are the tasks of a job array: `--jobs` says how many.

    Raises ConfigError where `--replicas` says something else.
    """
    jobs, replicas = settings["jobs"], settings["replicas"]
    if jobs.is_default:
        return settings
    if not replicas.is_default and replicas.value != jobs.value:
        raise ConfigError(f"--jobs {jobs.value} and --replicas {replicas.value} mean the same")
    return {**settings, "replicas": jobs}


#: Options that hold paths, of the job and of the cluster.
_PATHS = ("run_dir", "sbatch_template", "cache_dir", "container", "mount", "venv")
#: What the run directory and the supervisor are built on.
_NOT_BY_SBATCH = {
    "array": "say --replicas, or for a batch run --jobs: each task needs a folder of its own",
    "output": "the log lies in the run directory; --run-dir says where that is",
    "error": "the log lies in the run directory, with what SLURM says of the end in it",
    "open-mode": "logs are appended to, so that a requeued job keeps its own",
    "ntasks": "one task runs on each node, and starts the node's ranks; say --nodes",
    "ntasks-per-node": "one task runs on each node, and starts the node's ranks; say --tp",
    "wait": "submit answers at once; `hpcserve wait JOB` waits",
}
#: Starting over was done at submission: a job that is started again must not do it.
_SAID_OTHERWISE = ("input", "inputs", "output", "model", "jobs", "fresh")
#: Of a job's drain, for a batch run's own end.
_BATCH_END_S = 10.0
_SET_BY_THE_JOB = ("api_key", "model", "host", "port", "drain_timeout_s")
_SET_BY_THE_LAUNCHER = ("nnodes", "node_rank", "dist_init_addr")


def existing_paths(*names: str | None) -> list[Path]:
    """Those names that are paths here (a model may also be a name of the hub)."""
    paths = [Path(name).expanduser().absolute() for name in names if name]
    # The hub's cache: a snapshot holds links to the blobs beside it.
    paths += [path.parent.parent for path in paths if path.parent.name == "snapshots"]
    if os.environ.get("HF_HOME"):
        paths.append(Path(os.environ["HF_HOME"]))
    return [path for path in paths if path.exists()]


def _python(cluster: ClusterConfig) -> str:
    return str(Path(cluster.venv) / "bin" / "python") if cluster.venv else sys.executable
