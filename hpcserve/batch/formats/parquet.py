"""Parquet, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcserve.batch.files import unreadable
from hpcserve.batch.table import BATCH_ROWS, TableReader

#: Read at a time of each column.
_BUFFER_BYTES = 1 << 20


class Reader(TableReader):
    """A span's place: its row group, and its first row in that."""

    def __init__(self, path: Path, *, id_column: str | None = None) -> None:
        super().__init__(path, id_column=id_column)
        self._opened: Any = None

    @property
    def schema(self) -> Any:
        return self._file.schema_arrow

    def parts(self) -> Iterator[tuple[list[int], int]]:
        metadata = self._file.metadata
        for group in range(metadata.num_row_groups):
            yield [group], metadata.row_group(group).num_rows

    def batches(self, part: list[int], columns: Sequence[str] | None) -> Iterator[Any]:
        names = None if columns is None else list(columns)
        batches: Iterator[Any] = self._file.iter_batches(BATCH_ROWS, row_groups=part, columns=names)
        return batches

    @property
    def _file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._opened is None:
            try:
                # In pieces: a row group may be as big as the file.
                self._opened = pq.ParquetFile(
                    self.path, buffer_size=_BUFFER_BYTES, pre_buffer=False
                )
            except (OSError, pa.ArrowException) as error:
                raise unreadable(self.path, error) from error
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = None
