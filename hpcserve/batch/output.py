"""One line of the output: OpenAI's batch output format."""

from __future__ import annotations

import hashlib
from typing import Any

from hpcserve.batch.row import BatchRow, Failure


class OutputRecords:
    """Makes the records of one run. Ids depend on the input's name and the row only, so that a
    run and its repetition say the same."""

    def __init__(self, input_name: str) -> None:
        self._input_name = input_name

    def answer(self, row: BatchRow, body: Any) -> dict[str, Any]:
        mark = self._mark(row)
        return {
            "id": f"batch_req_{mark}",
            "custom_id": row.custom_id,
            "response": {"status_code": 200, "request_id": f"req_{mark}", "body": body},
            "error": None,
        }

    def failure(self, row: BatchRow, failure: Failure) -> dict[str, Any]:
        """`error` says what went wrong and on which line of the input; where the row was a request,
        `response` holds what a server would have answered, as OpenAI does."""
        mark = self._mark(row)
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
        return {
            "id": f"batch_req_{mark}",
            "custom_id": row.custom_id,
            "response": response,
            "error": {"code": failure.code, "message": failure.message, "line": row.line},
        }

    def _mark(self, row: BatchRow) -> str:
        text = f"{self._input_name}:{row.index}"
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
