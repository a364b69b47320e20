"""A dataset that the library `datasets` saved with `save_to_disk`: a folder of Arrow files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcserve.batch.durable import read_json
from hpcserve.batch.files import unreadable
from hpcserve.batch.table import TableReader
from hpcserve.errors import InputError


class Reader(TableReader):
    """A span's place: number of its Arrow file, its record batch, its first row in that."""

    def __init__(self, path: Path, *, id_column: str | None = None) -> None:
        super().__init__(path, id_column=id_column)
        self._schema: Any = None
        self._opened: Any = None
        #: The file that is open, and the batch that it gives next.
        self._place = (0, 0)

    @property
    def schema(self) -> Any:
        if self._schema is None:
            with self._open(0) as reader:
                self._schema = reader.schema
        return self._schema

    def parts(self) -> Iterator[tuple[list[int], int]]:
        import pyarrow as pa

        for number, path in enumerate(self._files):
            try:
                with self._open(number) as reader:
                    for batch_number, batch in enumerate(reader):
                        yield [number, batch_number], batch.num_rows
            except (OSError, pa.ArrowException) as error:
                raise unreadable(path, error) from error

    def batches(self, part: list[int], columns: Sequence[str] | None) -> Iterator[Any]:
        number, wanted = part
        batch = self._batch_at(number, wanted)
        if batch is not None:
            yield batch if columns is None else batch.select(list(columns))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def _batch_at(self, number: int, wanted: int) -> Any:
        """Parts come in order mostly: the file is read on from where it was. None at its end."""
        if self._opened is None or self._place[0] != number or self._place[1] > wanted:
            self.close()
            self._opened, self._place = self._open(number), (number, 0)
        batch = None
        while self._place[1] <= wanted:  # those before it are mapped, not read
            self._place = (number, self._place[1] + 1)
            batch = next(self._opened, None)
        return batch

    @property
    def _files(self) -> list[Path]:
        state = read_json(self.path / "state.json") or {}
        files = [self.path / str(one["filename"]) for one in state.get("_data_files", [])]
        if not files:
            raise InputError(f"{self.path}/state.json names no data files")
        return files

    def _open(self, number: int) -> Any:
        import pyarrow as pa

        path = self._files[number]
        try:
            return pa.ipc.open_stream(pa.memory_map(str(path)))
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from error
