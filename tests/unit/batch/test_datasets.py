"""Saved datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hpcserve.batch.formats import dataset
from hpcserve.errors import InputError

Run = Callable[..., Any]


def _save(folder: Path, num_batches: int) -> Path:
    folder.mkdir()
    schema = pa.schema([("prompt", pa.string())])
    with pa.ipc.new_stream(str(folder / "data.arrow"), schema) as writer:
        for number in range(num_batches):
            writer.write_batch(pa.record_batch({"prompt": [f"a {number}"]}))
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return folder


def test_a_dataset_that_is_cut_off_is_refused(tmp_path: Path, run: Run, engine: Any) -> None:
    path = _save(tmp_path / "data", 10) / "data.arrow"
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(InputError, match=r"cannot read the input .*data.arrow"):
        run(tmp_path / "data", tmp_path / "out.jsonl")
    assert engine.num_started == 0


def test_a_dataset_of_many_batches_is_read_once_through(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    open_file = dataset.Reader._open

    def counted(reader: Any, number: int) -> Any:
        opened.append(number)
        return open_file(reader, number)

    monkeypatch.setattr(dataset.Reader, "_open", counted)
    assert run(_save(tmp_path / "data", 100), tmp_path / "out.jsonl").num_ok == 100
    assert len(opened) < 10
