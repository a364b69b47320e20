"""The client against hpcserve's own server, over a core without a model."""

from __future__ import annotations

import sys

import pytest

from hpcserve.bench.client_pool import Load, run_load
from hpcserve.bench.completion import RequestStyle
from hpcserve.bench.metrics import figures_of
from hpcserve.bench.probe import Server
from hpcserve.bench.startup import measure_startup
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import make_workload
from hpcserve.errors import EngineError
from hpcserve.fake_engine import VOCAB_SIZE, write_byte_tokenizer

PROGRAM = """
import sys

import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.config.server import ServerConfig
from hpcserve.server.run import run_server
config = EngineConfig.from_options({"model": sys.argv[1]})
server = ServerConfig(port=int(sys.argv[2]), profile_dir=sys.argv[1])
run_server(config, server, core_module="hpcserve.fake_engine")
"""


def test_startup_and_a_load(tmp_path, monkeypatch):
    folder = write_byte_tokenizer(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(folder), "{port}"]
    seen = {}

    def load(server, model):
        """Stands where the phases are asked for, while the server runs."""
        workload = make_workload("random", {"num_requests": 20, "input_len": 30, "output_len": 12})
        requests = workload.build(TokenSource.make(seed=0, run=0, vocab_size=VOCAB_SIZE))
        result = run_load(
            server.base_url, RequestStyle(model=model["id"]), requests, Load(5, arrivals=False)
        )
        seen["figures"] = figures_of(requests, result.records)
        seen["flushed"] = server.flush_cache()
        seen["info"] = server.info()
        seen["profile"] = server.start_profile(tmp_path / "profile")
        with pytest.raises(EngineError, match=r"answered 400: output_dir: .*--profile-dir\)$"):
            server.start_profile(tmp_path.parent)
        return {}

    monkeypatch.setattr("hpcserve.bench.startup._phases", load)
    times = measure_startup(command, cold=False, timeout_s=60)
    assert 0 < times.port_open_s <= times.first_answer_s
    figures = seen["figures"]
    assert figures["errors"] == {}
    assert figures["output_tokens"] == 20 * 12
    assert figures["prompt_tokens"] == 20 * 30
    assert figures["cache_hit_rate"] == 0.1  # the fake says 3 of 30 tokens
    assert figures["ttft_ms"]["p50"] > 0
    assert seen["flushed"] and seen["profile"]
    assert "version" in seen["info"]


def test_unknown_endpoints_are_not_offered(null_server):
    _, url = null_server()
    server = Server(url)
    assert server.call("/nothing") is None
    assert server.info() == {}
    assert server.model()["id"] == "null"
    assert server.model_folder(server.model()) is None
