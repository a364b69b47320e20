"""What `hpcserve batch VERB` does to a run, without an engine."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from hpcserve.batch import journal
from hpcserve.batch import manifest as manifests
from hpcserve.batch.durable import fsync_folder, replace_file, storage, temporary_name, write_file
from hpcserve.batch.lease import Claims, Owner
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.merge import refuse_inputs, undamaged, write_output
from hpcserve.batch.run_dir import RunDir
from hpcserve.errors import ConfigError, InputError, OutputError


def manifest_of(run_dir: RunDir) -> Manifest:
    """With its files where they are now, if its folder was moved. Raises InputError where there is
    none."""
    found = manifests.load(run_dir.manifest)
    if found is None:
        raise InputError(f"there is no batch run in {run_dir.path}")
    return manifests.moved(found, run_dir.output)


def command_of(path: Path) -> tuple[str, list[str]]:
    """Folder and words of the command that began a run; starting over was meant once."""
    manifest = manifest_of(RunDir(path))
    if not manifest.argv:
        raise ConfigError(f"the run {path} was not begun by `hpcserve batch`; call run_batch again")
    if not Path(manifest.cwd).is_dir():
        raise ConfigError(
            f"the run {path} was begun in {manifest.cwd}, which is gone; give the first command "
            "once more, where its files are now"
        )
    argv = [word for word in manifest.argv if word not in ("--fresh", "--overwrite")]
    return manifest.cwd, argv


def cancel_run(run_dir: RunDir) -> None:
    """Workers look for this file every second."""
    manifest_of(run_dir)
    with storage(run_dir.cancelled):
        replace_file(run_dir.cancelled, msgspec.json.encode({"cancelled_s": time.time()}))


def uncancel(run_dir: RunDir) -> None:
    with storage(run_dir.cancelled):
        run_dir.cancelled.unlink(missing_ok=True)


def merge_run(run_dir: RunDir, output: str | None, *, partial: bool) -> tuple[Path, int]:
    """Write the output; returns where, and how many rows are in it."""
    manifest = manifest_of(run_dir)
    where = Path(output or manifest.output)
    if partial and output is None and len(run_dir.committed()) < len(manifest.shards):
        raise OutputError(
            f"rows are missing, and {where} is the name of the whole output; say another with -o"
        )
    refuse_inputs(manifest.input_files(), where, manifest.errors)
    return where, write_output(run_dir, manifest, where, partial=partial)


def forget_failures(run_dir: RunDir) -> int:
    """Make failed rows of finished shards unfinished again; returns how many.

    Answered rows of such a shard go back into a journal before the shard is taken away: whenever
    this is ended, each of them is in the one or in the other.
    """
    manifest = manifest_of(run_dir)
    owner = Owner.here()
    num_failed = 0
    with storage(run_dir.path):
        # The output is no longer the last word.
        run_dir.report.unlink(missing_ok=True)
        fsync_folder(run_dir.path)
        for number in sorted(run_dir.committed()):
            num_failed += _reopen(run_dir, manifest, number, owner.name)
        num_failed += _clean_journals(run_dir, manifest, owner)
    return num_failed


def _reopen(run_dir: RunDir, manifest: Manifest, number: int, owner: str) -> int:
    path = run_dir.shard(number)
    with undamaged(path):
        found = list(journal.committed(path, manifest.run_id_bytes, number))
    kept = [record for record in found if record.status == journal.OK]
    num_failed = len(found) - 1 - len(kept)
    if num_failed:
        _write_journal(run_dir, manifest, number, owner, kept)
        path.unlink()
        fsync_folder(path.parent)
    return num_failed


def _clean_journals(run_dir: RunDir, manifest: Manifest, owner: Owner) -> int:
    """Failed rows of shards that nobody works on."""
    num_failed = 0
    claims = Claims(run_dir, manifest, owner)
    try:
        for number in range(len(manifest.shards)):
            paths = run_dir.journals_of(number)
            if not paths or run_dir.shard(number).exists() or not claims.take(number):
                continue
            rows: dict[tuple[int, bool], journal.RowRecord] = {}
            for path in paths:
                for record in journal.records(path, manifest.run_id_bytes, number):
                    rows.setdefault((record.row, record.status == journal.CUT_SHORT), record)
            kept = [one for one in rows.values() if one.status == journal.OK]
            failed = sum(
                one.status in (journal.FAILED, journal.QUARANTINED) for one in rows.values()
            )
            if failed:
                _write_journal(run_dir, manifest, number, f"{owner.name}-kept", kept)
                for path in paths:
                    path.unlink(missing_ok=True)
            num_failed += failed
    finally:
        claims.close()
    return num_failed


def _write_journal(
    run_dir: RunDir,
    manifest: Manifest,
    number: int,
    owner: str,
    kept: list[journal.RowRecord],
) -> None:
    final = run_dir.journal(number, owner)
    temporary = temporary_name(final)
    pieces = [journal.header(manifest.run_id_bytes, number), *(one.pack() for one in kept)]
    write_file(temporary, pieces)
    temporary.replace(final)
    fsync_folder(final.parent)
