"""Packed inputs and outputs: gzip and zstd, whole, cut off and damaged."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from hpcserve.errors import InputError

Run = Callable[..., Any]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_compressed_files(tmp_path: Path, run: Run, ending: str) -> None:
    text = b'{"prompt": "a b"}\n' * 300
    packed = gzip.compress(text) if ending.endswith("gz") else zstandard.compress(text)
    source, output = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    source.write_bytes(packed)
    run(source, output)
    data = output.read_bytes()
    if ending.endswith("gz"):
        plain = gzip.decompress(data)
    else:
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert plain.count(b"\n") == 300


def test_a_damaged_archive_is_refused_before_anything_runs(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    source = tmp_path / "in.jsonl.gz"
    data = gzip.compress(b"".join(b'{"prompt": "a %d"}\n' % n for n in range(40_000)))
    source.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cannot read the input .*in.jsonl.gz"):
        run(source, tmp_path / "out.jsonl")
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl.gz"]
    assert engine.num_started == 0


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_zst_file_that_is_cut_off_is_refused_and_not_a_shorter_one(
    tmp_path: Path, run: Run, engine: Any, share: float
) -> None:
    data = zstandard.compress(b"".join(b'{"prompt": "a %d"}\n' % n for n in range(40_000)))
    source = tmp_path / "in.jsonl.zst"
    source.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="before the end of its last frame"):
        run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 0


def test_frames_and_what_is_to_be_skipped_between_them(tmp_path: Path, run: Run) -> None:
    skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    frames = [zstandard.compress(b'{"prompt": "a %d"}\n' % n) for n in range(300)]
    (tmp_path / "in.jsonl.zst").write_bytes(skipped + skipped.join(frames))
    assert run(tmp_path / "in.jsonl.zst", tmp_path / "out.jsonl", shard_rows=64).num_ok == 300
