"""Parquet: the answer's text and numbers as columns, the whole response as JSON beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.batch import journal
from hpcserve.batch.durable import of_the_disk
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.table import TableReader
from hpcserve.batch.writers.base import RowWriter
from hpcserve.errors import InputError

_STATUS = {journal.OK: "ok", journal.FAILED: "error", journal.QUARANTINED: "quarantined"}
#: A row group ends with the shard that brings it to so many rows, or bytes of answers.
_GROUP_ROWS = 16_384
_GROUP_BYTES = 32 << 20
_OWN = ("id", "custom_id", "response", "error")


class Writer(RowWriter):
    """The input's own columns stand before ours, with their types, where it is a table too;
    else they are the column `input`, as JSON. A column that has one of our names is left out."""

    def __init__(self, temporary: Path, final: Path, manifest: Manifest) -> None:
        import pyarrow.parquet as pq

        super().__init__(temporary, final, manifest)
        self._readers = self._input_tables()
        self._kept = self._kept_fields()
        self._rows: list[dict[str, Any]] = []
        self._inputs: list[Any] = []
        self._num_bytes = 0
        self._of_shard: list[int] = []
        self._shard: int | None = None
        self._stream = temporary.open("xb")
        self._writer: Any = pq.ParquetWriter(self._stream, self._schema(), compression="zstd")

    def write(self, shard: int, record: RowRecord) -> None:
        if shard != self._shard:
            self._end_shard()
            self._shard = shard
        self._of_shard.append(record.row)
        self._rows.append(self._columns(record))
        self._num_bytes += len(record.payload)

    def complete(self) -> None:
        self._end_shard()
        self._write_group()
        self._writer.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self._stream.close()
        for reader in self._readers:
            reader.close()

    # ------------------------------------------------------------ columns

    def _columns(self, record: RowRecord) -> dict[str, Any]:
        line = msgspec.json.decode(record.payload)
        body = (line["response"] or {}).get("body") or {}
        choices = body.get("choices") or [{}]
        error = line["error"]
        custom_id = line["custom_id"]
        row = {
            "id": line["id"],
            "custom_id": None if custom_id is None else str(custom_id),
            "status": _STATUS[record.status],
            "text": _text(choices[0]),
            "finish_reason": choices[0].get("finish_reason"),
            "prompt_tokens": record.num_prompt_tokens,
            "output_tokens": record.num_output_tokens,
            "cached_tokens": record.num_cached_tokens,
            "error_code": error["code"] if error else None,
            "error_message": error["message"] if error else None,
            "response": msgspec.json.encode(line["response"]).decode(),
        }
        if self._keeps and not self._readers:
            kept = {name: value for name, value in line.items() if name not in _OWN}
            row["input"] = msgspec.json.encode(kept).decode()
        return row

    @property
    def _keeps(self) -> bool:
        return bool(self.manifest.content["columns"].get("keep_columns"))

    def _own_schema(self) -> Any:
        import pyarrow as pa

        numbers = ("prompt_tokens", "output_tokens", "cached_tokens")
        names = ["id", "custom_id", "status", "text", "finish_reason", *numbers]
        names += ["error_code", "error_message", "response"]
        if self._keeps and not self._readers:
            names.append("input")
        return pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in names])

    def _schema(self) -> Any:
        import pyarrow as pa

        return pa.schema([*self._kept, *self._own_schema()])

    # ------------------------------------------------------------ the input's columns

    def _input_tables(self) -> list[TableReader]:
        if not self._keeps:
            return []
        readers = [one.reader(self.manifest.id_column) for one in self.manifest.input_files()]
        tables = [reader for reader in readers if isinstance(reader, TableReader)]
        return tables if len(tables) == len(readers) else []

    def _kept_fields(self) -> list[Any]:
        """Columns that all input files have, with one type."""
        if not self._readers:
            return []
        taken = set(self._own_schema().names)
        schemas = [reader.schema for reader in self._readers]
        return [
            field
            for field in schemas[0]
            if field.name not in taken
            and all(
                field.name in one.names and one.field(field.name).type == field.type
                for one in schemas
            )
        ]

    def _end_shard(self) -> None:
        if self._shard is not None and self._kept:
            self._inputs.append(self._input_of(self._shard).take(self._of_shard))
        self._of_shard = []
        if len(self._rows) >= _GROUP_ROWS or self._num_bytes >= _GROUP_BYTES:
            self._write_group()

    def _input_of(self, number: int) -> Any:
        """The input's columns of a shard; nulls where its part of the file is damaged."""
        import pyarrow as pa

        shard = self.manifest.shards[number]
        names = [field.name for field in self._kept]
        try:
            batches = list(self._readers[shard.file].table_of(shard.span))
            found = pa.Table.from_batches(batches).select(names)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and of_the_disk(error):
                raise  # the run stops, and reads it when the disk is mended
            found = None
        if found is None or found.num_rows != shard.span.num_rows:
            nulls = [pa.nulls(shard.span.num_rows, field.type) for field in self._kept]
            return pa.table(nulls, names=names)
        return found

    def _write_group(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=self._own_schema())
        if self._kept:
            kept = pa.concat_tables(self._inputs)
            columns = [*(kept.column(field.name) for field in self._kept), *table.columns]
            table = pa.table(columns, schema=self._schema())
        self._writer.write_table(table)
        self._rows, self._inputs, self._num_bytes = [], [], 0


def _text(choice: dict[str, Any]) -> str | None:
    text = choice.get("text", (choice.get("message") or {}).get("content"))
    return None if text is None else str(text)


def names(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Place, id and custom_id of every row. Raises InputError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "custom_id"]):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record["id"], record["custom_id"]
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {error}") from error
