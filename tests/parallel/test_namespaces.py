"""Two nodes with networks of their own: namespaces joined by a cable, through the real bootstrap."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

#: Of the cable's ends, in each node's namespace.
ADDRESSES = ("10.213.77.1", "10.213.77.2")
ASK = """
import json, sys, urllib.request
url, *prompts = sys.argv[1:]
for prompt in prompts:
    params = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    body = json.dumps({"input_ids": json.loads(prompt), "sampling_params": params}).encode()
    request = urllib.request.Request(url + "/generate", body, {"content-type": "application/json"})
    print(json.dumps(json.load(urllib.request.urlopen(request, timeout=60))["output_ids"]))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Names of two namespaces. The cable's ends are called cable0 and cable1."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2")
    names = [f"hpcserve-{os.getpid()}-{n}" for n in range(2)]
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "cable0", "type", "veth", "peer", "name", "cable1",
           "netns", names[1])  # fmt: skip
        for n, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{ADDRESSES[n]}/24", "dev", f"cable{n}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"cable{n}", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def start(network, tmp_path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Path]]]:
    """Start a node in its namespace; all end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        rank: int, folder: Path, *options: str, timeout_s: int = 200
    ) -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / f"node{rank}.log"
        inside = ["ip", "netns", "exec", network[rank], sys.executable, "-m", "hpcserve", "serve"]
        common = ["--device", "cpu", "--cpu-threads", "1", "--max-total-tokens", "2048"]
        common += ["--max-running-requests", "6", "--port", "0", "--nnodes", "2"]
        environment = {
            **os.environ,
            "HPCSERVE_DIST_SECRET": "s1",
            "HPCSERVE_START_TIMEOUT_S": str(timeout_s),
        }
        with log.open("wb") as out:
            node = subprocess.Popen(
                [*inside, str(folder), *common, "--node-rank", str(rank), *options],
                stdout=out,
                stderr=out,
                env=environment,
            )
        started.append(node)
        return node, log

    yield start
    for node in started:
        node.kill()
        node.wait()


def test_ranks_meet_over_the_cable_and_its_end_is_noticed(kit, folder_of, expected, network, start):
    options = ["--tp", "2", "--dist-init-addr", f"{ADDRESSES[0]}:29700"]
    other, other_log = start(1, folder_of("qwen3"), *options)
    node, log = start(0, folder_of("qwen3"), *options)
    kit.wait_until(lambda: "http://127.0.0.1:" in log.read_text() or node.poll() is not None, 200)
    text = log.read_text()
    url = re.search(r"http://127.0.0.1:\d+", text)
    assert url is not None, text
    assert f"meeting on interface cable0 ({ADDRESSES[0]})" in text
    assert f"meeting on interface cable1 ({ADDRESSES[1]})" in other_log.read_text()
    assert re.search(r"slowest neighbours rank \d on \S+ \(cable[01]\) -> rank \d on", text)
    prompts = [json.dumps(prompt) for prompt in kit.prompts[:3]]
    asked = subprocess.run(
        ["ip", "netns", "exec", network[0], sys.executable, "-c", ASK, url.group(), *prompts],
        check=True,
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert answers == expected("qwen3")[:3]
    # Nothing on either side is told that the cable is gone.
    ip("-n", network[1], "link", "set", "cable1", "down")
    assert node.wait(60) == 1
    last = log.read_text().strip().splitlines()[-1]
    assert "node 1" in last
    assert other.wait(60) == 1


def test_a_loopback_address_does_not_join_two_machines(kit, folder_of, start):
    """In the second namespace 127.0.0.1 is that namespace."""
    options = ["--tp", "2", "--dist-init-addr", "127.0.0.1:29701"]
    other, log = start(1, folder_of("qwen3"), *options, timeout_s=2)
    assert other.wait(60) == 1
    assert "a loopback address means this machine" in log.read_text()
