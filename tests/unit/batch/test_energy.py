"""Joules, as a stand-in for NVIDIA's library tells them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hpcserve.batch.energy import EnergyMeter
from hpcserve.batch.run_dir import RunDir


class Library(ModuleType):
    """pynvml of a machine with four GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.has_counter = True

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 4

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not 0 <= index < 4:
            raise self.NVMLError("no such GPU")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-a": 0, "GPU-d": 3}[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:
        """Millijoules since the driver was loaded."""
        if not self.has_counter:
            raise self.NVMLError("not supported")
        return 10**9 + device * 1000 + self.used_mj[device]

    used_mj = [0, 0, 0, 0]  # noqa: RUF012 - each test sets its own


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    found.used_mj = [0, 0, 0, 0]
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


@pytest.mark.parametrize(
    ("visible", "num_gpus", "joules"),
    [
        (None, 4, 10.0),
        (None, 1, 1.0),  # an engine of one GPU is not charged for its neighbours
        ("2,1", 2, 5.0),
        ("GPU-d", 1, 4.0),
        ("0,1", 4, None),  # some of its GPUs are in another node
        ("9", 1, None),
        ("", 1, None),
        (None, 0, None),  # on a CPU
    ],
)
def test_the_gpus_of_the_engine_are_counted(
    library: Library, visible: str | None, num_gpus: int, joules: float | None
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    meter = EnergyMeter(num_gpus, environ)
    library.used_mj = [1000, 2000, 3000, 4000]
    assert meter.joules() == joules


def test_a_gpu_without_a_counter_says_nothing(library: Library) -> None:
    library.has_counter = False
    assert EnergyMeter(1, {}).joules() is None


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter(1, {}).joules() is None


def test_a_run_reports_joules_and_gpu_hours(
    tmp_path: Path,
    run: Callable[..., Any],
    engine: Any,
    backend: Any,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    backend.num_gpus = 2
    answer = engine.answer

    async def answered(request: Any) -> Any:
        library.used_mj[0] += 36_000  # 36 J a row on each
        library.used_mj[1] += 36_000
        return await answer(request)

    engine.answer = answered
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n' * 100)
    result = run(source, tmp_path / "out.jsonl")
    assert result.joules == pytest.approx(7200.0)
    assert result.gpu_hours > 0
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    assert json.loads(run_dir.report.read_bytes())["joules"] == pytest.approx(7200.0)
    assert "0.002 kWh" in run_dir.html_report.read_text()
