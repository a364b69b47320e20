import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from hpcserve.errors import PortInUseError, UsageError
from hpcserve.fake_engine import write_byte_tokenizer
from hpcserve.server.run import bind

pytestmark = pytest.mark.timeout(400)

ENDLESS = {"ignore_eos": True, "max_new_tokens": 3000}


def test_serves_and_ctrl_c_drains(tmp_path, server_process):
    served = server_process(life=3)
    assert served.line.startswith(f"hpcserve serves {tmp_path.name} at http://127.0.0.1:")
    text = "a" * 20
    with served.stream("/generate", text=text, stream=True) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(served.process.pid, signal.SIGINT)
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]
    assert f'"text":"{text}"' in rest[-4]
    code, out, err = served.end()
    assert code == 0, err
    assert out == ""
    assert "Traceback" not in err


def test_sigterm_to_every_process_drains_as_well(server_process):
    """As SLURM sends it where it tracks processes by their parents."""
    served = server_process(life=3)
    with served.stream("/generate", text="a" * 20, stream=True) as response:
        lines = response.iter_lines()
        next(lines)
        server = psutil.Process(served.process.pid)
        for process in [*server.children(recursive=True), server]:
            process.terminate()
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    code, _, err = served.end()
    assert code == 0, err


def test_drain_has_an_end(server_process):
    served = server_process(life=3, drain_s=0.1)
    with served.stream("/generate", text="a", stream=True, sampling_params=ENDLESS) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(served.process.pid, signal.SIGTERM)
        assert '"type":"abort"' in list(lines)[-4]
    code, _, err = served.end()
    assert code == 0, err
    assert "1 requests are running" in err
    assert "aborted 1 requests" in err


def test_second_ctrl_c_ends_at_once(server_process):
    served = server_process(life=3, drain_s=3600)
    with served.stream("/generate", text="a", stream=True, sampling_params=ENDLESS) as response:
        lines = response.iter_lines()  # held: once it is gone, so is the connection
        next(lines)
        os.kill(served.process.pid, signal.SIGINT)
        served.wait_said("1 requests are running")
        os.kill(served.process.pid, signal.SIGINT)
        code, _, err = served.end()
    assert code == 130, err
    assert "Traceback" not in err


def test_a_dead_engine_ends_the_server(server_process):
    served = server_process(life=1)
    assert served.post("/generate", text="a" * 50).status_code == 503
    code, _, err = served.end()
    assert code == 1
    assert "the engine is gone (core): told to die" in err


def test_an_engine_that_cannot_start(server_process):
    code, out, err = server_process(life=5).end()
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1] == "no config.json in it"


def test_ctrl_c_while_it_starts(tmp_path, server_script):
    write_byte_tokenizer(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", server_script, str(tmp_path), "4", "1", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not psutil.Process(process.pid).children():  # until it waits for its engine
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err


def test_port_in_use():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port}.*--port"):
            bind("127.0.0.1", port)
    with pytest.raises(UsageError, match="--host"):
        bind("no.such.host.invalid", 0)


def test_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with bind("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


def test_import_is_light():
    code = (
        "import sys, hpcserve.server.run, hpcserve.fake_engine, hpcserve.engine.llm;"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
