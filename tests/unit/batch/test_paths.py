"""Which inputs and outputs a run takes: what cannot work is refused before the engine starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch import verbs
from hpcserve.batch.run_dir import RunDir
from hpcserve.errors import InputError, OutputError

Run = Callable[..., Any]


def _refusals(folder: Path) -> dict[str, tuple[str, str, type[Exception]]]:
    good = str(folder / "in.jsonl")
    Path(good).write_text('{"prompt": "a"}\n')
    (folder / "empty.jsonl").touch()
    (folder / "old.jsonl").write_text("precious")
    (folder / "dir.jsonl").mkdir()
    (folder / "rows.xlsx").write_text("x")
    (folder / "none.d").mkdir()
    new = str(folder / "new.jsonl")
    return {
        "there is no input file": (f"{folder}/none.jsonl", new, InputError),
        "is empty": (f"{folder}/empty.jsonl", new, InputError),
        "has no input files": (f"{folder}/none.d", new, InputError),
        "no file matches": (f"{folder}/*.nothing", new, InputError),
        "cannot write .* known endings": (good, f"{folder}/out.xlsx", OutputError),
        "cannot tell the format of": (f"{folder}/rows.xlsx", new, InputError),
        "there is no folder": (good, f"{folder}/none/out.jsonl", OutputError),
        "pass --overwrite to replace it": (good, f"{folder}/old.jsonl", OutputError),
        "the output .* is a folder": (good, f"{folder}/dir.jsonl", OutputError),
        "are the same file": (good, good, OutputError),
    }


@pytest.mark.parametrize("case", range(10))
def test_what_cannot_work_is_refused_before_the_engine_starts(
    tmp_path: Path, run: Run, engine: Any, case: int
) -> None:
    message, (source, output, error) = list(_refusals(tmp_path).items())[case]

    with pytest.raises(error, match=message):
        run(source, output)
    assert engine.num_started == 0
    assert (tmp_path / "old.jsonl").read_text() == "precious"


def test_a_folder_that_is_not_writable(
    tmp_path: Path,
    run: Run,
    engine: Any,
    write_lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, folder, access = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), "ro", os.access
    (tmp_path / folder).mkdir(mode=0o500)
    # Root may write everywhere: it is told what another user would be.
    monkeypatch.setattr(os, "access", lambda at, mode: Path(at).name != folder and access(at, mode))
    with pytest.raises(OutputError, match="ro is not writable"):
        run(source, tmp_path / folder / "out.jsonl")
    assert engine.num_started == 0
    assert list((tmp_path / folder).iterdir()) == []


def test_an_input_of_blank_lines_is_an_error(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match="has no rows"):
        run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_no_output_takes_the_place_of_an_input(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    source = write_lines(tmp_path / "out.errors.jsonl", [{"prompt": f"a {n}"} for n in range(3)])
    with pytest.raises(OutputError, match=r"same file: .*out.errors.jsonl"):
        run(source, tmp_path / "out.jsonl", errors="file")
    assert engine.num_started == 0
    assert run(source, tmp_path / "out.jsonl").num_ok == 3
    before = source.read_bytes()
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    with pytest.raises(OutputError, match="same file"):
        verbs.merge_run(run_dir, str(source), partial=False)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["data", "data/*.jsonl"])
def test_outputs_among_what_a_folder_or_a_glob_finds_are_not_meant(
    tmp_path: Path, run: Run, name: str
) -> None:
    """The run is complete, or its failed rows are answered again: the files are there by then."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "poison"}\n')
    output = tmp_path / "data" / "out.jsonl"
    for _ in range(2):
        result = run(tmp_path / name, output, errors="file")
        assert (result.num_ok, result.num_failed) == (1, 1)
    assert verbs.forget_failures(RunDir.of_output(output)) == 1
    assert run(tmp_path / name, output, errors="file").num_failed == 1
    with pytest.raises(OutputError, match="same file"):
        run(output, output, errors="file")
