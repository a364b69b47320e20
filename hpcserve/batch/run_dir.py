"""Where a run keeps its files: `OUT.hpcserve/`.

manifest.json            what the run is; written once
journal/SHARD.OWNER      finished rows of a shard in work, one file per owner
shards/SHARD             finished shards, under their names only when whole
leases/SHARD             who works on it (a hint; correctness does not depend on it)
workers/OWNER.json       what each worker has done
report.json, report.html at the end
cancelled                told to stop
inputs/                  stdin, kept
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hpcserve.batch.durable import fsync_folder, storage, temporaries_of, temporary_name
from hpcserve.errors import InputError, RunCancelledError

SUFFIX = ".hpcserve"


@dataclass(frozen=True)
class RunDir:
    path: Path

    @classmethod
    def of_output(cls, output: Path) -> RunDir:
        return cls(output.with_name(output.name + SUFFIX))

    @classmethod
    def find(cls, name: str) -> RunDir:
        """From what a user calls the run: its directory, or its output. Raises InputError."""
        path = Path(name)
        candidates = [cls(path), cls.of_output(path)]
        for one in candidates:
            if one.manifest.is_file():
                return one
        raise InputError(f"there is no batch run {name} (neither a run directory nor an output)")

    def create(self) -> None:
        """Raises IncompleteRunError where the disk refuses."""
        with storage(self.path):
            for folder in (self.journals, self.shards, self.leases, self.workers):
                folder.mkdir(parents=True, exist_ok=True)
            fsync_folder(self.path)
            fsync_folder(self.path.parent)

    def discard(self) -> None:
        """Forget the run, in one step: it is there or it is not, whenever this is ended."""
        gone = temporary_name(self.path)
        with storage(self.path):
            try:
                self.path.replace(gone)
            except FileNotFoundError:
                return
            fsync_folder(self.path.parent)
            for one in temporaries_of(self.path):  # also of one who was killed at this
                shutil.rmtree(one, ignore_errors=one != gone)

    @property
    def output(self) -> Path:
        """Beside it; with its absolute path."""
        whole = self.path.absolute()
        return whole.with_name(whole.name.removesuffix(SUFFIX))

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def journals(self) -> Path:
        return self.path / "journal"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def leases(self) -> Path:
        return self.path / "leases"

    @property
    def workers(self) -> Path:
        return self.path / "workers"

    @property
    def spool(self) -> Path:
        return self.path / "inputs" / "stdin"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def html_report(self) -> Path:
        return self.path / "report.html"

    @property
    def cancelled(self) -> Path:
        return self.path / "cancelled"

    def shard(self, number: int) -> Path:
        return self.shards / f"{number:06d}"

    def lease(self, number: int) -> Path:
        return self.leases / f"{number:06d}"

    def journal(self, number: int, owner: str) -> Path:
        return self.journals / f"{number:06d}.{owner}"

    def journals_of(self, number: int) -> list[Path]:
        """Of every owner; not what is still being written."""
        return sorted(self.journals.glob(f"{number:06d}.*"))

    def committed(self) -> set[int]:
        """Numbers of the shards that are finished. Raises IncompleteRunError."""
        with storage(self.shards, "read"):
            return numbers_in(self.shards)


def refuse_cancelled(run_dir: RunDir) -> None:
    """Raise RunCancelledError where somebody told the run to stop; IncompleteRunError where the
    disk does not say."""
    with storage(run_dir.cancelled, "read"):
        is_cancelled = run_dir.cancelled.exists()
    if is_cancelled:
        raise RunCancelledError(
            f"the run was cancelled; `hpcserve batch resume {run_dir.path}` goes on"
        )


def numbers_in(folder: Path) -> set[int]:
    """Names of files that are numbers."""
    with os.scandir(folder) as entries:
        return {int(one.name) for one in entries if one.name.isdigit()}
