"""What the launcher reads from an engine's command line."""

from __future__ import annotations

import pytest

from hpcserve.errors import ConfigError
from hpcserve.launcher.engine_command import parallel_of


@pytest.mark.parametrize(
    ("line", "sizes"),
    [
        ("serve some/model --tp 2 --dp=3", (2, 1, 3, 1)),
        ("--tensor-parallel-size 4 --enable-expert-parallel", (4, 1, 1, 4)),
        ("--dp 2 --ep 2 --enable-dp-attention --port 1", (1, 1, 2, 2)),
        ("--dp 4 --tp 2 --enable-dp-attention --enable-expert-parallel", (2, 1, 4, 8)),
    ],
)
def test_layout_of_a_command_line(line, sizes):
    found = parallel_of(line.split())
    assert (found.tp_size, found.pp_size, found.dp_size, found.expert_size) == sizes


@pytest.mark.parametrize("line", ["--tp two", "--tp", "--dp 2 --ep 2", "--enable-dp-attention"])
def test_one_that_cannot_be_is_refused(line):
    with pytest.raises(ConfigError):
        parallel_of(line.split())


def test_a_file_and_variables_count_as_they_do_for_the_engine(tmp_path, monkeypatch):
    """`sbatch serve.sbatch --config FILE` hands them on as they are."""
    path = tmp_path / "my options.yaml"
    path.write_text("model: org/m\ntensor-parallel-size: 8\npp: 2\ncontext-length: 512\n")
    monkeypatch.setenv("HPCSERVE_PP_SIZE", "4")
    found = parallel_of(["--config", str(path), "--dp", "3"])
    assert (found.tp_size, found.pp_size, found.dp_size) == (8, 4, 3)
    assert parallel_of([f"--config={path}", "--tp", "2"]).tp_size == 2
