"""The end of a run: every shard is there, so the output can be, and the report of it all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from hpcserve.batch import html_report
from hpcserve.batch.durable import replace_file, storage, sweep, temporaries_of
from hpcserve.batch.idle import IdleWatch, idle_timeout_s
from hpcserve.batch.lease import Claims, Owner
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.merge import errors_path, growing_path, write_output
from hpcserve.batch.report import RunResult
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.tally import Tally
from hpcserve.batch.worker_status import read_all
from hpcserve.config.batch import BatchConfig
from hpcserve.errors import IncompleteRunError, RowsFailedError
from hpcserve.log import get_logger

log = get_logger(__name__)

_POLL_S = 0.5


def known_result(run_dir: RunDir, manifest: Manifest, output: Path) -> RunResult | None:
    """The report of a run whose output is written; None where there is still something to do."""
    if not run_dir.report.exists() or not output.exists():
        return None
    if len(run_dir.committed()) < len(manifest.shards):
        return None
    return msgspec.json.decode(run_dir.report.read_bytes(), type=RunResult)


def finish_run(
    run_dir: RunDir, manifest: Manifest, output: Path, batch: BatchConfig
) -> RunResult | None:
    """Write output and reports, once also where several workers end together; None where another
    one does it, and this one need not wait (`idle`).

    Raises IncompleteRunError; RowsFailedError (with the output written) where too many rows failed.
    """
    claims = Claims(run_dir, manifest, Owner.here())
    idle = IdleWatch(claims, idle_timeout_s(batch))
    try:
        while (result := known_result(run_dir, manifest, output)) is None:
            with storage(run_dir.leases):
                is_mine = claims.take_merge()
                if not is_mine and claims.all_committed() and idle.is_over():
                    return None
            if is_mine:
                result = _finish(run_dir, manifest, output)
                break
            time.sleep(_POLL_S)
    finally:
        claims.close()
    rate = result.num_failed / max(result.num_rows, 1)
    if rate > batch.max_error_rate:
        raise RowsFailedError(
            f"{result.num_failed:,} of {result.num_rows:,} rows failed, more than --max-error-rate "
            f"{batch.max_error_rate:g} allows; the output {output} is written"
        )
    return result


def _finish(
    run_dir: RunDir, manifest: Manifest, output: Path, following: Iterable[int] | None = None
) -> RunResult:
    tally = Tally()
    write_output(run_dir, manifest, output, observe=tally.add, following=following)
    result = tally.result(run_dir, manifest)
    with storage(run_dir.report):
        page = html_report.page(result, read_all(run_dir), manifest, tally.histograms())
        replace_file(run_dir.html_report, page.encode())
        replace_file(run_dir.report, msgspec.json.format(msgspec.json.encode(result)))
        _sweep(run_dir, manifest, output)
    return result


class Follower:
    """Writes the output of an unordered run while it goes on, shard by shard.

    Of several workers one does it. One that ends early, for whatever reason, leaves nothing behind:
    `finish_run` writes the whole output then.
    """

    def __init__(self, run_dir: RunDir, manifest: Manifest, output: Path) -> None:
        self._run_dir = run_dir
        self._manifest = manifest
        self._output = output
        #: Others rely on this process for the output, or it does not know yet.
        self.is_writing = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Where the run went to its end, so does the output."""
        if kind is not None:
            self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        claims = Claims(self._run_dir, self._manifest, Owner.here())
        try:
            if claims.take_merge():
                _remove_growing(self._output)
                _finish(self._run_dir, self._manifest, self._output, self._as_they_finish())
        except _StoppedError:
            pass
        except (IncompleteRunError, OSError) as error:
            log.warning("the output is written at the end of the run, not meanwhile: %s", error)
        finally:
            self.is_writing = False
            claims.close()

    def _as_they_finish(self) -> Iterator[int]:
        written: set[int] = set()
        while len(written) < len(self._manifest.shards):
            new = sorted(self._run_dir.committed() - written)
            yield from new
            written.update(new)
            if not new and self._stop.wait(_POLL_S):
                raise _StoppedError


class _StoppedError(Exception):
    """Never leaves this module."""


def _sweep(run_dir: RunDir, manifest: Manifest, output: Path) -> None:
    """What workers that were killed have left: journals and leases of finished shards, files half
    written. Every shard is committed by now, so nobody needs them."""
    leftovers = [
        *run_dir.journals.iterdir(),
        *(one for one in run_dir.leases.iterdir() if one.name.isdigit()),
        *temporaries_of(output),
    ]
    if manifest.errors == "file":
        leftovers += temporaries_of(errors_path(output))
    for folder in (run_dir.shards, run_dir.leases, run_dir.workers, run_dir.path):
        leftovers += folder.glob(".*.tmp")
    for path in leftovers:
        sweep(path)
    _remove_growing(output)


def _remove_growing(output: Path) -> None:
    """What a worker that was killed has left of an output that it wrote meanwhile."""
    for path in (output, errors_path(output)):
        sweep(growing_path(path))
