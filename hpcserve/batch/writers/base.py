"""The contract of an output format: rows come in the output's order, and end as one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

from hpcserve.batch.journal import RowRecord
from hpcserve.batch.manifest import Manifest


class RowWriter(ABC):
    """Writes `temporary`, which becomes `final` when all is there.

    Leaving the block without an error completes the file and syncs it.
    """

    def __init__(self, temporary: Path, final: Path, manifest: Manifest) -> None:
        self.temporary = temporary
        self.final = final
        self.manifest = manifest

    @abstractmethod
    def write(self, shard: int, record: RowRecord) -> None:
        """Raises OSError."""

    @abstractmethod
    def complete(self) -> None:
        """Write what is still held, and sync. Raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file, complete or not."""

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.complete()
        finally:
            self.close()
