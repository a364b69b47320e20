import gzip
import json
import resource
import tempfile
from contextlib import contextmanager

import pytest
import torch

from hpcserve.config.parallel import ParallelConfig
from hpcserve.distributed.topology import Topology
from hpcserve.engine.step_profiler import StepProfiler
from hpcserve.errors import EngineError


@pytest.fixture
def profiler():
    """Of the last rank of a layout."""
    return StepProfiler(Topology(ParallelConfig(dp_size=2, pp_size=2, tp_size=4)).place(15))


def test_the_trace_holds_what_ran_between(tmp_path, profiler):
    one = torch.ones(4, 4)
    torch.sin(one)
    profiler.start(tmp_path / "new" / "folder")
    torch.mm(one, one)
    path = profiler.stop("noon")
    torch.cos(one)
    assert path == tmp_path / "new" / "folder" / "hpcserve-noon-dp1-pp1-tp3.trace.json.gz"
    assert list(path.parent.iterdir()) == [path]
    with gzip.open(path) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::mm" in names
    assert not names & {"aten::sin", "aten::cos"}


def test_mistakes_have_names(tmp_path, profiler):
    with pytest.raises(EngineError, match="no profile"):
        profiler.stop("noon")
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot write profiles"):
        profiler.start(tmp_path / "file")
    profiler.start(tmp_path)
    with pytest.raises(EngineError, match="already"):
        profiler.start(tmp_path)
    assert profiler.stop("noon").is_file()


def test_a_profiler_that_does_not_start_is_no_end_of_the_rank(tmp_path, profiler, monkeypatch):
    def refuse(_):
        raise RuntimeError("it is used by another")

    with monkeypatch.context() as patch:
        patch.setattr(torch.profiler.profile, "start", refuse)
        with pytest.raises(EngineError, match="does not start: it is used by another"):
            profiler.start(tmp_path)
    profiler.start(tmp_path)
    assert profiler.stop("noon").is_file()


def test_a_folder_that_goes_away_ends_the_profile_alone(tmp_path, profiler):
    folder = tmp_path / "scratch"
    profiler.start(folder)
    folder.rmdir()
    with pytest.raises(EngineError, match="cannot write"):
        profiler.stop("noon")
    profiler.start(tmp_path)
    assert profiler.stop("noon").is_file()


def test_a_folder_that_becomes_a_file_ends_the_profile_alone(tmp_path, profiler):
    folder = tmp_path / "scratch"
    profiler.start(folder)
    folder.rmdir()
    folder.write_text("")
    with pytest.raises(EngineError, match="cannot write"):
        profiler.stop("noon")


@contextmanager
def files_end_at(num_bytes):
    """Writing more fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [0, 100_000])
def test_a_disk_that_gets_full_is_an_error_and_leaves_nothing(tmp_path, profiler, num_bytes):
    profiler.start(tmp_path)
    one = torch.ones(4, 4)
    for _ in range(2000):
        torch.mm(one, one)
    with files_end_at(num_bytes), pytest.raises(EngineError, match="cannot write"):
        profiler.stop("noon")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_temporary_files_takes_no_trace(tmp_path, profiler, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    profiler.start(tmp_path)
    assert profiler.stop("noon").is_file()


def test_a_trace_that_cannot_take_its_place_leaves_nothing(tmp_path, profiler):
    taken = tmp_path / "hpcserve-noon-dp1-pp1-tp3.trace.json.gz"
    taken.mkdir()
    profiler.start(tmp_path)
    with pytest.raises(EngineError, match="cannot write"):
        profiler.stop("noon")
    assert list(tmp_path.iterdir()) == [taken]


def test_a_discarded_profile_leaves_nothing(tmp_path, profiler):
    profiler.discard()
    profiler.start(tmp_path)
    profiler.discard()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineError, match="no profile"):
        profiler.stop("noon")
