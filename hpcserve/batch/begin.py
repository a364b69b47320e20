"""What stands before a run's first row: its inputs are found, and its manifest is there."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcserve.batch import manifest as manifests
from hpcserve.batch.dialect import run_content
from hpcserve.batch.durable import storage
from hpcserve.batch.engine import Backend
from hpcserve.batch.finish import known_result
from hpcserve.batch.inputs import InputFile, find_inputs
from hpcserve.batch.lease import process_ids
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.merge import outputs_of, refuse_inputs, writer_kind
from hpcserve.batch.run_dir import RunDir, refuse_cancelled
from hpcserve.batch.worker_status import WorkerStatus, read_all
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.errors import ModelNotFoundError, OutputError

#: Longer than workers are silent, while their engines start too.
_LOOK_S = 12.0


@dataclass(frozen=True)
class BegunRun:
    run_dir: RunDir
    inputs: list[InputFile]
    manifest: Manifest


def begin(
    backend: Backend,
    batch: BatchConfig,
    defaults: RowDefaults,
    output: Path,
    *,
    seed: int = 0,
    argv: Sequence[str] = (),
) -> BegunRun:
    """Find the run that this command means, or make it.

    Raises ConfigError, InputError, OutputError, ModelError: all that can be known of without an
    engine.
    """
    run_dir = RunDir.of_output(output)
    _check_output(output)
    content = run_content(backend, batch, defaults, seed)
    if batch.fresh and not _is_restarted():
        _start_over(run_dir)
    inputs = _inputs(run_dir, batch, output)
    manifest = _manifest(run_dir, inputs, content, batch, output, argv)
    _check_not_cancelled(run_dir)
    return BegunRun(run_dir, inputs, manifest)


def begin_for_jobs(
    backend: Backend,
    batch: BatchConfig,
    defaults: RowDefaults,
    *,
    seed: int = 0,
    argv: Sequence[str] = (),
    elsewhere: bool,
) -> bool:
    """What is done once for all the jobs of a run, where they are submitted.

    elsewhere: they run on other machines. A model that only those have is no mistake then: the
    first job that starts writes the manifest.
    Returns whether anything is left to do. Raises what `begin` raises.
    """
    output = Path(batch.output)
    try:
        begun = begin(backend, batch, defaults, output, seed=seed, argv=argv)
        return known_result(begun.run_dir, begun.manifest, output) is None
    except ModelNotFoundError:
        if not elsewhere:
            raise
        _check_output(output)
        run_dir = RunDir.of_output(output)
        _inputs(run_dir, batch, output)
        if batch.fresh:
            _start_over(run_dir)
            # The jobs do not know that it may be replaced.
            output.unlink(missing_ok=True)
        return True


def _start_over(run_dir: RunDir) -> None:
    """Forget the run. Raises OutputError where somebody is at work on it."""
    before = [one for one in read_all(run_dir) if not (one.ended or _is_known_gone(one))]
    until = time.monotonic() + (_LOOK_S if before else 0.0)
    while not (working := [one for one in before if one.is_alive] or _changed(run_dir, before)):
        # Its node's clock may be another than ours: who writes now and then is alive.
        if time.monotonic() >= until:
            run_dir.discard()
            return
        time.sleep(_LOOK_S / 20)
    one = working[0]
    raise OutputError(
        f"{run_dir.path} is in work (process {one.pid} on {one.host}), and starting over "
        f"would take it away; end it first: hpcserve batch cancel {run_dir.path}"
    )


def _changed(run_dir: RunDir, before: list[WorkerStatus]) -> list[WorkerStatus]:
    known = {one.name: one.updated_s for one in before}
    return [one for one in read_all(run_dir) if known.get(one.name, one.updated_s) != one.updated_s]


def _is_known_gone(worker: WorkerStatus) -> bool:
    """It ran on this machine and does not any more: killed, it could not say so."""
    import psutil

    here = (worker.host, worker.pids) == (socket.gethostname(), process_ids())
    return here and (worker.pid == os.getpid() or not psutil.pid_exists(worker.pid))


def _manifest(
    run_dir: RunDir,
    inputs: list[InputFile],
    content: dict[str, dict[str, Any]],
    batch: BatchConfig,
    output: Path,
    argv: Sequence[str],
) -> Manifest:
    """The run's own, or a new one. Raises InputError where it is another run than this."""
    found = manifests.load(run_dir.manifest)
    if found is None:
        if output.exists() and not batch.fresh:
            raise OutputError(
                f"the output {output} exists, and is of no run known here; "
                "pass --overwrite to replace it"
            )
        new = manifests.new_manifest(
            inputs,
            content,
            span_rows=batch.shard_rows,
            output=output,
            errors=batch.errors,
            ordered=not batch.unordered,
            argv=argv,
        )
        run_dir.create()
        found = manifests.store(new, run_dir.manifest)
    manifests.refuse_changes(found, inputs, content)
    run_dir.create()
    return manifests.located(found, inputs)


def _inputs(run_dir: RunDir, batch: BatchConfig, output: Path) -> list[InputFile]:
    """Raises InputError, and OutputError where one of them would be written over."""
    written = outputs_of(output, batch.errors)
    kept = _kept_stdin(run_dir)
    found = find_inputs(batch.inputs, batch.input_format, run_dir.spool, kept, written)
    refuse_inputs(found, output, batch.errors)
    return found


def _kept_stdin(run_dir: RunDir) -> Path | None:
    """The rows of stdin that an earlier command for this run has kept."""
    found = manifests.load(run_dir.manifest)
    names = [Path(one.path).name for one in found.scan.files] if found else []
    kept = [run_dir.spool.with_name(name) for name in names if name.startswith("stdin-")]
    return kept[0] if len(kept) == 1 and kept[0].is_file() else None


def _check_output(output: Path) -> None:
    """Raise OutputError for what would fail only after days."""
    writer_kind(output.name)
    if not output.parent.is_dir():
        raise OutputError(f"there is no folder {output.parent} for the output {output}")
    if output.is_dir():
        raise OutputError(f"the output {output} is a folder; name a file")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"the output folder {output.parent} is not writable")


def _is_restarted() -> bool:
    """The same job once more: what its first run finished must not be thrown away."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def _check_not_cancelled(run_dir: RunDir) -> None:
    """A person who runs it again means it; a job that was queued before does not."""
    if os.environ.get("SLURM_JOB_ID"):
        refuse_cancelled(run_dir)
    with storage(run_dir.cancelled), contextlib.suppress(FileNotFoundError):
        run_dir.cancelled.unlink()
