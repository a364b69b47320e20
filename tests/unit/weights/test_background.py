"""Weights that are read while the rest is prepared: the same weights, and no lost errors."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
import torch

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.worker import Worker
from hpcserve.errors import ConfigError, WeightsError
from hpcserve.testing import StepDriver, make_random_checkpoint
from hpcserve.weights import background, loader


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("qwen3"), "qwen3")


class Held:
    """Reading that stops after the third tensor until it may go on.  names: what was read."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.names: list[str] = []
        self._tensors = loader._tensors

    def tensors(self, file):
        for name, tensor in self._tensors(file):
            if len(self.names) == 3 and _is_loading():
                assert self.go_on.wait(30)
            self.names.append(name)
            yield name, tensor


@pytest.fixture
def held(monkeypatch) -> Held:
    held = Held()
    monkeypatch.setattr(loader, "_tensors", held.tensors)
    return held


def _worker(folder: Path, **options) -> Worker:
    base = {"model": str(folder), "device": "cpu", "cpu_threads": 1, "max_running_requests": 4}
    return Worker(EngineConfig.from_options({**base, **options}))


def _is_reading() -> bool:
    return any(thread.name == "weights" for thread in threading.enumerate())


def _is_loading() -> bool:
    """Whether the thread that asks is the one that reads while the rest is prepared."""
    return threading.current_thread().name == "weights"


def test_weights_are_the_same_whether_or_not_the_rest_waits_for_them(made, held, monkeypatch):
    reading = []
    prepare = Worker._prepare

    def watched(self, model):
        reading.append(_is_reading())
        try:
            return prepare(self, model)
        finally:
            held.go_on.set()

    monkeypatch.setattr(Worker, "_prepare", watched)
    workers = [_worker(made, overlap_loading=overlap) for overlap in (True, False)]
    assert reading == [True, False]
    ones, others = (dict(one.runner.model.named_parameters()) for one in workers)
    assert ones.keys() == others.keys()
    for name, param in ones.items():
        assert torch.equal(param, others[name]), name
    texts = [StepDriver(one.runner).generate([[5, 6, 7]], 8) for one in workers]
    assert texts[0] == texts[1]
    assert not _is_reading()


@pytest.mark.parametrize("overlap", [True, False])
def test_a_file_that_cannot_be_read_ends_the_start(made, tmp_path, overlap):
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (made / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="corrupt or cut off"):
        _worker(tmp_path, overlap_loading=overlap)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds no \.safetensors"):
        _worker(tmp_path, overlap_loading=overlap)


def test_a_start_that_fails_elsewhere_reads_no_further(made, held, monkeypatch):
    def observed(model, files, *, stop):
        held.go_on = stop  # what is held goes on when it is told to stop
        loader.load_weights(model, files, stop=stop)

    def fail(self, model):
        raise ConfigError("no room for the pool")

    monkeypatch.setattr(background, "load_weights", observed)
    monkeypatch.setattr(Worker, "_prepare", fail)
    with pytest.raises(ConfigError, match="no room"):
        _worker(made)
    assert not _is_reading()
    assert held.go_on.is_set()
    assert len(held.names) <= 4


def test_a_second_error_is_told_as_well(made, tmp_path, monkeypatch, caplog):
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")

    def fail(self, model):
        while _is_reading():
            time.sleep(0.001)
        raise ConfigError("no room for the pool")

    monkeypatch.setattr(Worker, "_prepare", fail)
    logging.getLogger("hpcserve").addHandler(caplog.handler)
    try:
        with pytest.raises(ConfigError, match="no room"):
            _worker(tmp_path)
    finally:
        logging.getLogger("hpcserve").removeHandler(caplog.handler)
    assert "the weights could not be read either" in caplog.text
    assert "corrupt or cut off" in caplog.text


def test_loading_stops_between_tensors(made):
    worker = _worker(made)
    model = worker.runner.model
    for param in model.parameters():
        with torch.inference_mode():
            param.zero_()
    stop = threading.Event()
    stop.set()
    with torch.inference_mode():
        loader.load_weights(model, [made / "model.safetensors"], stop=stop)
    assert all(not param.any() for param in model.parameters())
