"""One line of the output: OpenAI's batch output format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from hpcserve.batch.row import BatchRow, Failure


class OutputRecords:
    """Makes the records of one run. Ids depend on the input's names and the row only, so that a
    run and its repetition say the same."""

    def __init__(self, names: Sequence[str]) -> None:
        self._marks = RowMarks(names)
        self._names = names

    def answer(self, row: BatchRow, body: Any) -> dict[str, Any]:
        mark = self._marks.of(row.file, row.line)
        return _beside(
            row.columns,
            {
                "id": f"batch_req_{mark}",
                "custom_id": row.custom_id,
                "response": {"status_code": 200, "request_id": f"req_{mark}", "body": body},
                "error": None,
            },
        )

    def failure(self, row: BatchRow, failure: Failure) -> dict[str, Any]:
        """`error` says what went wrong and on which line of the input; where the row was a request,
        `response` holds what a server would have answered, as OpenAI does."""
        mark = self._marks.of(row.file, row.line)
        response = None
        if failure.status is not None:
            refusal = {
                "message": failure.message,
                "type": failure.error_type,
                "param": failure.param,
                "code": failure.code,
            }
            response = {
                "status_code": failure.status,
                "request_id": f"req_{mark}",
                "body": {"error": refusal},
            }
        error = {"code": failure.code, "message": failure.message, "line": row.line}
        if len(self._names) > 1:
            error["file"] = self._names[row.file]
        return _beside(
            row.columns,
            {
                "id": f"batch_req_{mark}",
                "custom_id": row.custom_id,
                "response": response,
                "error": error,
            },
        )


class RowMarks:
    """A row's mark in the output: of the file's name and the row's line, so that `verify` can tell
    from the files alone which row a line answers."""

    def __init__(self, names: Sequence[str]) -> None:
        self._seeds = [
            hashlib.blake2b(f"{number}:{name}:".encode(), digest_size=12)
            for number, name in enumerate(names)
        ]

    def of(self, file: int, line: int) -> str:
        digest = self._seeds[file].copy()
        digest.update(b"%d" % line)
        return digest.hexdigest()


def _beside(columns: Mapping[str, Any] | None, record: dict[str, Any]) -> dict[str, Any]:
    """The record, behind the input's columns that it does not name itself."""
    if not columns:
        return record
    kept = {key: value for key, value in columns.items() if key not in record}
    return {**kept, **record}
