"""Two launchers on one host, through the real bootstrap, stand in for two nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hpcserve.bench.probe import Server
from hpcserve.errors import EngineError


class Node:
    """One launcher.  log: what it has said so far."""

    def __init__(
        self,
        rank: int,
        arguments: list[str],
        secret: str,
        folder: Path,
        listener: socket.socket | None = None,
    ) -> None:
        """listener: of node 0, as a launcher hands it down; a port that was only found free may be
        another's by now."""
        self._told = (rank, arguments, secret, folder)
        self.path = folder / f"node{rank}.log"
        environment = {
            **os.environ,
            "HPCSERVE_DIST_SECRET": secret,
            "HPCSERVE_START_TIMEOUT_S": "200",
        }
        handed = [] if listener is None else [listener.fileno()]
        if handed:
            environment["HPCSERVE_DIST_LISTEN_FD"] = str(handed[0])
        with self.path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hpcserve", "serve", *arguments, "--node-rank", str(rank)],
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=handed,
            )

    def again(self) -> Node:
        """The same node, started once more."""
        return Node(*self._told)

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if "worker_main" in " ".join(one.cmdline())]


@contextmanager
def two_nodes(
    folder: Path,
    logs: Path,
    *layout: str,
    second: tuple[str, ...] | None = None,
    secret: str = "s1",
    count: int = 2,
) -> Iterator[list[Node]]:
    """second, secret: what the other nodes are told, where it is not the same as node 0.

    count: of nodes.
    """
    common = [str(folder), "--device", "cpu", "--cpu-threads", "1", "--max-total-tokens", "2048"]
    common += ["--max-running-requests", "6", "--port", "0", "--nnodes", str(count)]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        common += ["--dist-init-addr", f"127.0.0.1:{listener.getsockname()[1]}"]
        others = [*common, *(layout if second is None else second)]
        nodes = [Node(rank, others, secret, logs) for rank in range(1, count)]
        nodes.insert(0, Node(0, [*common, *layout], "s1", logs, listener))
    try:
        yield nodes
    finally:
        for node in nodes:
            node.process.kill()
            node.process.wait()


def wait_for_url(node: Node) -> str:
    deadline = time.monotonic() + 200
    while (found := re.search(r"http://127.0.0.1:\d+", node.log)) is None:
        assert node.process.poll() is None and time.monotonic() < deadline, node.log
        time.sleep(0.05)
    return found.group()


def generate(url: str, prompt: list[int]) -> list[int]:
    params = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": params}).encode()
    request = urllib.request.Request(
        f"{url}/generate", body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        ids: list[int] = json.load(answer)["output_ids"]
    return ids


def num_pages(url: str) -> int:
    with urllib.request.urlopen(f"{url}/load", timeout=60) as answer:
        return int(json.load(answer)["num_total_pages"])


def is_there(process: psutil.Process) -> bool:
    """Whether it runs; what a halted parent has not yet looked at does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def check_profile(server: Server, prompt: list[int], folder: Path, layout: str) -> None:
    """Each node's rank writes a trace of its own; a folder that is none is refused by name."""
    folder.mkdir()
    (folder / "file").write_text("")
    with pytest.raises(EngineError, match=r"503.*cannot write profiles to"):
        server.start_profile(folder / "file")
    assert server.start_profile(folder / "run")
    generate(server.base_url, prompt)
    other = {"--tp 2": "0-pp0-tp1", "--dp 2": "1-pp0-tp0"}[layout]
    files = server.stop_profile()
    assert sorted(files) == sorted(map(str, (folder / "run").iterdir()))
    assert [one.rpartition("-dp")[2] for one in files] == [
        "0-pp0-tp0.trace.json.gz",
        f"{other}.trace.json.gz",
    ]


@pytest.mark.parametrize("layout", ["--tp 2", "--dp 2"])
def test_two_nodes_say_what_one_says(kit, folder_of, expected, tmp_path, layout):
    profiles = tmp_path / "profiles"
    options = [*layout.split(), "--profile-dir", str(profiles)]
    with two_nodes(folder_of("qwen3"), tmp_path, *options) as nodes:
        url = wait_for_url(nodes[0])
        answers = [generate(url, prompt) for prompt in kit.prompts[:4]]
        assert answers == expected("qwen3")[:4]
        check_profile(Server(url), kit.prompts[0], profiles, layout)
        if layout == "--tp 2":
            assert re.search(r"links: all-reduce over 2 ranks \d+\.\d+ GB/s", nodes[0].log)
        nodes[0].process.send_signal(signal.SIGTERM)
        assert [node.process.wait(60) for node in nodes] == [0, 0]


def test_a_rank_killed_on_another_node_ends_both_by_name(kit, folder_of, tmp_path):
    with two_nodes(folder_of("qwen3"), tmp_path, "--tp", "2") as nodes:
        wait_for_url(nodes[0])
        ours = [one for node in nodes for one in kit.children(node.process.pid)]
        nodes[1].workers()[0].kill()
        assert nodes[0].process.wait(60) == 1
        assert nodes[1].process.wait(60) in (0, 1)
        assert "rank 1 (dp 0, pp 0, tp 1; node 1, device 0)" in nodes[0].log.splitlines()[-1]
        assert "rank 1 of this node ended: its process was ended by SIGKILL" in nodes[1].log
        kit.wait_until(lambda: not any(one.is_running() for one in ours))


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "node 1 ("), (signal.SIGSTOP, "node 1 said nothing for")],
)
def test_a_node_that_is_gone_ends_a_replica_that_spans_it(kit, folder_of, tmp_path, number, reason):
    with two_nodes(folder_of("qwen3"), tmp_path, "--tp", "2") as nodes:
        wait_for_url(nodes[0])
        ours = [one for node in nodes for one in kit.children(node.process.pid)]
        nodes[1].process.send_signal(number)
        assert nodes[0].process.wait(60) == 1
        assert reason in nodes[0].log
        assert "node 1 (" in nodes[0].log.splitlines()[-1]
        # The halted launcher cannot end its rank; the rank notices that its core is gone.
        kit.wait_until(lambda: not any(is_there(one) for one in ours))


def test_a_node_that_is_gone_may_come_back(kit, folder_of, tmp_path):
    """With replicas, the other one serves meanwhile."""
    with two_nodes(folder_of("qwen3"), tmp_path, "--dp", "2") as nodes:
        url = wait_for_url(nodes[0])
        expected = generate(url, kit.prompts[0])
        nodes[1].process.kill()
        nodes[1].process.wait()
        kit.wait_until(lambda: "replica 1 is gone" in nodes[0].log)
        assert generate(url, kit.prompts[0]) == expected
        assert num_pages(url) == 2048 // 16
        nodes.append(nodes[1].again())
        kit.wait_until(lambda: num_pages(url) == 2 * 2048 // 16, 200)
        assert [generate(url, kit.prompts[0]) for _ in range(4)] == [expected] * 4


def test_replicas_of_several_nodes_each(kit, folder_of, expected, tmp_path):
    """Four nodes, two replicas of two; one of them loses a rank, goes on being served by the other,
    and comes back."""
    folder = folder_of("qwen3")
    with two_nodes(folder, tmp_path, "--tp", "2", "--dp", "2", count=4) as nodes:
        url = wait_for_url(nodes[0])
        assert [generate(url, prompt) for prompt in kit.prompts[:4]] == expected("qwen3")[:4]
        assert [len(node.workers()) for node in nodes] == [1] * 4
        nodes[3].workers()[0].kill()
        kit.wait_until(lambda: "replica 1 is gone" in nodes[0].log)
        assert "rank 3 (dp 1, pp 0, tp 1; node 3, device 0)" in nodes[0].log
        assert generate(url, kit.prompts[1]) == expected("qwen3")[1]
        kit.wait_until(lambda: num_pages(url) == 2 * 2048 // 16, 200)
        answers = [generate(url, prompt) for prompt in kit.prompts[:4]]
        assert answers == expected("qwen3")[:4]
        nodes[0].process.send_signal(signal.SIGTERM)
        assert [node.process.wait(60) for node in nodes] == [0] * 4


def test_a_killed_launcher_ends_the_other_node(kit, folder_of, tmp_path):
    with two_nodes(folder_of("qwen3"), tmp_path, "--tp", "2") as nodes:
        wait_for_url(nodes[0])
        ours = [one for node in nodes for one in kit.children(node.process.pid)]
        nodes[0].process.kill()
        assert nodes[1].process.wait(60) == 1
        assert "node 0 is gone" in nodes[1].log
        kit.wait_until(lambda: not any(one.is_running() for one in ours))


@pytest.mark.parametrize(
    ("second", "secret", "rank", "words"),
    [
        (("--tp", "2", "--page-size", "64"), "s1", 0, ["page_size 64", "16", "same command"]),
        (("--tp", "2"), "other", 1, ["HPCSERVE_DIST_SECRET"]),
    ],
)
def test_who_does_not_belong_is_turned_away(folder_of, tmp_path, second, secret, rank, words):
    with two_nodes(
        folder_of("qwen3"), tmp_path, "--tp", "2", second=second, secret=secret
    ) as nodes:
        code = nodes[rank].process.wait(200)
        assert code in (1, 2)
        last = nodes[rank].log.strip().splitlines()[-1]
        assert [word for word in words if word not in last] == []


def test_a_rank_that_dies_while_it_starts_is_named(kit, folder_of, tmp_path):
    """Its core waits for it on another node, and cannot see its process."""
    with two_nodes(folder_of("qwen3"), tmp_path, "--tp", "2") as nodes:
        kit.wait_until(lambda: nodes[1].workers(), 200)
        nodes[1].workers()[0].kill()
        assert nodes[0].process.wait(60) == 1
        last = nodes[0].log.strip().splitlines()[-1]
        words = ["rank 1 (dp 0, pp 0, tp 1; node 1, device 0)", "SIGKILL"]
        assert [word for word in words if word not in last] == []
        kit.wait_until(lambda: nodes[1].process.poll() is not None, 60)
