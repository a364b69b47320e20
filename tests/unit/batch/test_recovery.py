"""What ends a run early, and how the next one goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch import journal, status, verbs
from hpcserve.batch import manifest as manifests
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.config.batch import RowDefaults
from hpcserve.errors import (
    HpcserveError,
    IncompleteRunError,
    InputError,
)

Run = Callable[..., Any]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _dies_after(engine: Any, num_answers: int) -> None:
    """The disk breaks: nothing an engine can do about it."""
    answer = engine.answer

    async def answered(request: Any) -> Any:
        if len(engine.answered) >= num_answers:
            raise IncompleteRunError("told to stop")
        return await answer(request)

    engine.answer = answered


def _interrupted(run: Run, engine: Any, source: Path, output: Path, after: int, **kw: Any) -> None:
    answer = engine.answer
    _dies_after(engine, after)
    with pytest.raises(IncompleteRunError, match="finished rows are kept") as raised:
        run(source, output, **kw)
    assert raised.value.exit_code == 75
    engine.answer = answer


def test_a_run_goes_on_where_it_was(tmp_path: Path, run: Run, engine: Any, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, tmp_path / "whole.jsonl", shard_rows=64)
    engine.answered.clear()
    _interrupted(run, engine, source, output, 200, shard_rows=64)
    assert not output.exists()
    found = status.of_run(RunDir.of_output(output))
    assert (found["state"], found["num_rows"]) == ("resumable", 500)
    assert found["num_finished"] >= 200
    result = run(source, output, shard_rows=64)
    assert result.num_ok == 500
    # What was answered and kept was not asked again.
    assert max(Counter(engine.answered).values()) == 1
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert verify_run(RunDir.of_output(output)).problems == []
    assert status.of_run(RunDir.of_output(output))["state"] == "complete"


def test_a_finished_run_is_not_run_again(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    run(source, tmp_path / "out.jsonl")
    again = run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 1
    assert again.num_ok == 500
    (tmp_path / "out.jsonl").unlink()
    run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 1
    assert len(_read(tmp_path / "out.jsonl")) == 500


@pytest.mark.parametrize(
    "tail",
    [b"\x07", "é".encode()[:1], b"\0" * 5000, b"\xff" * 64, journal._FRAME.pack(1 << 31, 0)],
)
def test_a_torn_tail_is_cut(
    tmp_path: Path, run: Run, engine: Any, source: Path, tail: bytes
) -> None:
    output = tmp_path / "out.jsonl"
    _interrupted(run, engine, source, output, 100)
    run_dir = RunDir.of_output(output)
    (path,) = run_dir.journals_of(0)
    with path.open("ab") as stream:
        stream.write(tail)
    run(source, output)
    assert verify_run(run_dir).problems == []
    assert max(Counter(engine.answered).values()) == 1


@pytest.mark.parametrize("keep", [0, 27, 28, 60, 200, 399])
def test_a_journal_cut_anywhere_loses_only_what_is_cut(
    tmp_path: Path, run: Run, engine: Any, source: Path, keep: int
) -> None:
    output = tmp_path / "out.jsonl"
    _interrupted(run, engine, source, output, 60)
    run_dir = RunDir.of_output(output)
    (path,) = run_dir.journals_of(0)
    os.truncate(path, keep)
    run(source, output)
    assert verify_run(run_dir).problems == []
    assert len(_read(output)) == 500


def test_a_flipped_bit_is_noticed(tmp_path: Path, run: Run, engine: Any, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    _interrupted(run, engine, source, output, 60)
    (path,) = RunDir.of_output(output).journals_of(0)
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    run(source, output)
    assert verify_run(RunDir.of_output(output)).problems == []


def test_a_damaged_shard_is_put_aside_and_answered_again(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output, shard_rows=100)
    run_dir = RunDir.of_output(output)
    wanted = output.read_bytes()
    output.unlink()
    path = run_dir.shard(2)
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(IncompleteRunError, match="damaged"):
        run(source, output, shard_rows=100)
    engine.answered.clear()
    run(source, output, shard_rows=100)
    assert len(engine.answered) == 100
    assert output.read_bytes() == wanted


def _changes(folder: Path) -> dict[str, Callable[[dict[str, Any], Any], None]]:
    def edited(options: dict[str, Any], backend: Any) -> None:
        text = (folder / "in.jsonl").read_text().replace("a 7 b", "a X b")
        (folder / "in.jsonl").write_text(text)

    def appended(options: dict[str, Any], backend: Any) -> None:
        with (folder / "in.jsonl").open("a") as stream:
            stream.write('{"prompt": "new"}\n')

    def renamed(options: dict[str, Any], backend: Any) -> None:
        shutil.copy(folder / "in.jsonl", folder / "other.jsonl")
        options["source"] = folder / "other.jsonl"

    def model(options: dict[str, Any], backend: Any) -> None:
        backend.model["files"] = "another"

    return {
        "the content of .*in.jsonl is another": edited,
        r"content of .*in\.jsonl": appended,
        "in.jsonl then, .*other.jsonl now": renamed,
        'model: files was "echo", is "another"': model,
        "sampling: temperature was not set, is 0.5": lambda options, backend: options.update(
            defaults=RowDefaults(temperature=0.5)
        ),
        "sampling: seed of the run was 0, is 1": lambda options, backend: options.update(seed=1),
        'template: system_prompt was not set, is "x"': lambda options, backend: options.update(
            system_prompt="x"
        ),
    }


@pytest.mark.parametrize("case", range(7))
def test_changed_content_is_refused_by_name(
    tmp_path: Path, run: Run, engine: Any, backend: Any, source: Path, case: int
) -> None:
    _interrupted(run, engine, source, tmp_path / "out.jsonl", 100)
    message, change = list(_changes(tmp_path).items())[case]
    options: dict[str, Any] = {"source": source}
    change(options, backend)
    with pytest.raises(InputError, match=message):
        run(options.pop("source"), tmp_path / "out.jsonl", **options)
    engine.answered.clear()
    fresh = {"source": source, "fresh": True}
    run(fresh.pop("source"), tmp_path / "out.jsonl", **fresh)
    assert len(engine.answered) >= 500


def test_a_copied_or_touched_input_is_the_same(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    _interrupted(run, engine, source, tmp_path / "out.jsonl", 100)
    (tmp_path / "moved").mkdir()
    shutil.move(source, tmp_path / "moved" / "in.jsonl")
    os.utime(tmp_path / "moved" / "in.jsonl")
    assert run(tmp_path / "moved" / "in.jsonl", tmp_path / "out.jsonl").num_ok == 500


def test_an_input_edited_while_the_run_goes_on_is_noticed(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    answer = engine.answer

    async def edit_first(request: Any) -> Any:
        text = source.read_text()
        source.write_text(text.replace("a 490 b", "a XXX b"))
        return await answer(request)

    engine.answer = edit_first
    with pytest.raises(InputError, match="has changed since the run began"):
        run(source, tmp_path / "out.jsonl", shard_rows=10, max_rows_in_flight=2)


# ---------------------------------------------------------------- proofs


def test_verify_finds_what_is_wrong(tmp_path: Path, run: Run, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output)
    lines = output.read_bytes().splitlines(keepends=True)
    other = json.loads(lines[5])
    other["custom_id"] = "id-6"
    cases = {
        "1 input rows have no output, such as row 4": lines[:3] + lines[4:],
        "1 outputs are there more than once": [*lines, lines[0]],
        "not in the order": [lines[1], lines[0], *lines[2:]],
        "answer no row": [*lines, lines[0].replace(b"batch_req_", b"batch_req_00")],
        "custom_id of another row": [*lines[:5], json.dumps(other).encode() + b"\n", *lines[6:]],
    }
    for problem, changed in cases.items():
        output.write_bytes(b"".join(changed))
        assert any(problem in found for found in verify_run(RunDir.of_output(output)).problems)


def test_a_partial_merge_holds_what_is_finished(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    _interrupted(run, engine, source, tmp_path / "out.jsonl", 250, shard_rows=50)
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    with pytest.raises(IncompleteRunError, match="--partial"):
        verbs.merge_run(run_dir, None, partial=False)
    where, num_rows = verbs.merge_run(run_dir, str(tmp_path / "some.jsonl"), partial=True)
    assert num_rows == len(_read(where)) == 50 * len(run_dir.committed()) > 0


def test_the_report_is_one_page_with_plots(tmp_path: Path, run: Run, source: Path) -> None:
    run(source, tmp_path / "out.jsonl")
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    page = run_dir.html_report.read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert '<td><span style="color:hsl(210 60% 45%)">' in page
    assert "http" not in page
    report = json.loads(run_dir.report.read_bytes())
    assert report["num_ok"] == 500
    assert report["percentiles"]["output tokens per row"]["p50"] == 3.0


def test_manifest_of_another_version_is_refused(tmp_path: Path, run: Run, source: Path) -> None:
    run(source, tmp_path / "out.jsonl")
    path = RunDir.of_output(tmp_path / "out.jsonl").manifest
    found = json.loads(path.read_bytes())
    path.write_text(json.dumps({**found, "version": 99}))
    with pytest.raises(HpcserveError, match="--fresh"):
        manifests.load(path)
