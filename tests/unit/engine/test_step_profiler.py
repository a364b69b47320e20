import gzip
import json

import pytest
import torch

from hpcserve.engine.step_profiler import StepProfiler
from hpcserve.errors import EngineError


def test_the_trace_holds_what_ran_between(tmp_path):
    profiler = StepProfiler()
    one = torch.ones(4, 4)
    torch.sin(one)
    profiler.start(tmp_path / "new" / "folder")
    torch.mm(one, one)
    path = profiler.stop()
    torch.cos(one)
    assert path.parent == tmp_path / "new" / "folder"
    with gzip.open(path) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::mm" in names
    assert not names & {"aten::sin", "aten::cos"}


def test_mistakes_have_names(tmp_path):
    profiler = StepProfiler()
    with pytest.raises(EngineError, match="no profile"):
        profiler.stop()
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot write profiles"):
        profiler.start(tmp_path / "file")
    profiler.start(tmp_path)
    with pytest.raises(EngineError, match="already"):
        profiler.start(tmp_path)
    assert profiler.stop().is_file()


def test_a_folder_that_goes_away_ends_the_profile_alone(tmp_path):
    profiler = StepProfiler()
    folder = tmp_path / "scratch"
    profiler.start(folder)
    folder.rmdir()
    with pytest.raises(EngineError, match="cannot write"):
        profiler.stop()
    profiler.start(tmp_path)
    assert profiler.stop().is_file()
