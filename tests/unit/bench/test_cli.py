from __future__ import annotations

import json
import shlex
import sys
import time

import pytest

from hpcserve.bench import startup
from hpcserve.cli.main import main
from hpcserve.errors import EngineError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def bench(capfd):
    """Run `hpcserve bench ...`: gives (exit code, last line as JSON or None, stdout, stderr)."""

    def run(*arguments):
        code = 0
        try:
            main.main(["bench", *map(str, arguments)], prog_name="hpcserve")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        lines = out.strip().splitlines()
        found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
        return code, found, out, err

    return run


def test_a_sweep_with_everything(bench, null_server, tmp_path):
    server, url = null_server(ttft_s=0.01, itl_s=0.002)
    plot, output = tmp_path / "plot.png", tmp_path / "deep" / "result.json"
    code, result, out, err = bench(
        *("serving", "--url", url + "/v1", "--workload", "random", "--num-requests", 8),
        *("--input-len", 16, "--output-len", 4, "--concurrency", "1,4", "--repeats", 2),
        *("--warmup", 2, "--flush-cache", "--goodput", "ttft:5000", "--plot", plot),
        *("--output", output, "--profile", tmp_path / "profile"),
    )
    assert code == 0
    assert [cell["load"]["concurrency"] for cell in result["cells"]] == [1, 4]
    for cell in result["cells"]:
        assert len(cell["runs"]) == 2
        assert cell["summary"]["num_ok"] == {"median": 8.0, "min": 8.0, "max": 8.0}
        figure = cell["summary"]["output_tok_s"]
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
        assert cell["summary"]["goodput_per_s"]["min"] > 0
    assert result["workload"]["input_len"] == 16
    assert result["environment"]["command"]
    assert "output tok/s" in out
    assert "TTFT ms" in out
    assert "no profile: this server has no /start_profile" in err
    assert plot.read_bytes().startswith(PNG)
    assert json.loads(output.read_text())["cells"] == result["cells"]
    assert server.num_flushes == 4
    # Two warm-ups and two repeats of eight, each with prompts of its own.
    prompts = [tuple(body["prompt"]) for body in server.seen]
    assert len(set(prompts)) == len(prompts) == 2 * (2 + 2 * 8)


def test_a_profile_is_stopped_whatever_happens_and_its_files_are_named(
    bench, null_server, tmp_path, monkeypatch
):
    server, url = null_server()
    answer, asked = server.answer, []

    def answer_profiles(path):
        if not path.endswith("_profile"):
            return answer(path)
        asked.append(path)
        return 200, {"files": ["/there/a.json.gz", "/there/b.json.gz"]} if "stop" in path else {}

    monkeypatch.setattr(server, "answer", answer_profiles)
    arguments = ["serving", "--url", url, "--num-requests", 2, "--warmup", 0, "--profile", tmp_path]
    code, _, _, err = bench(*arguments, "--output-len", 2)
    assert code == 0
    assert "profile: /there/a.json.gz\nprofile: /there/b.json.gz\n" in err
    assert asked == ["/start_profile", "/stop_profile"]

    def fail(*_):
        raise EngineError("the load failed")

    monkeypatch.setattr("hpcserve.bench.serving.run_load", fail)
    code, _, _, err = bench(*arguments)
    assert code == 1 and "the load failed" in err
    assert asked[2:] == ["/start_profile", "/stop_profile"]


def test_failures_are_shown_and_nothing_answered_is_an_error(bench, null_server):
    _, url = null_server(refuse_every=2)
    short = ("--num-requests", 6, "--input-len", 4, "--output-len", 3, "--warmup", 0)
    code, result, out, _ = bench("serving", "--url", url, *short, "--concurrency", 1)
    assert code == 0
    assert result["cells"][0]["runs"][0]["errors"] == {"http_503": 3}
    assert "first error: http_503" in out
    _, url = null_server(refuse_every=1)
    code, result, *_ = bench("serving", "--url", url, *short, "--request-rate", "inf")
    assert code == 1
    assert result["cells"][0]["runs"][0]["num_ok"] == 0


def test_a_warm_up_that_fails_says_why(bench, null_server):
    _, url = null_server(refuse_every=1)
    code, result, _, err = bench("serving", "--url", url, "--num-requests", 2)
    assert (code, result) == (1, None)
    assert "all 2 warm-up requests failed; the first: http_503" in err


def test_nobody_listens(bench):
    code, _, _, err = bench("serving", "--url", "http://127.0.0.1:9")
    assert code == 1
    assert "no server answers at http://127.0.0.1:9" in err


def test_traces_are_saved_and_replayed(bench, null_server, tmp_path):
    first, url = null_server()
    trace = tmp_path / "trace.jsonl"
    code, *_ = bench(
        *("serving", "--url", url, "--preset", "prefix", "--num-groups", 2, "--prefix-len", 8),
        *("--questions-per-group", 3, "--save-trace", trace, "--warmup", 0),
    )
    assert code == 0
    second, url = null_server()
    code, result, *_ = bench("serving", "--url", url, "--trace", trace, "--warmup", 0)
    assert code == 0
    assert result["workload"]["num_requests"] == 6

    def sent(server):
        return sorted(body["prompt"] for body in server.seen)

    assert sent(first) == sent(second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "c256", "--workload", "random"], "give one of --workload, --preset"),
        (
            ["--workload", "sharegpt", "--input-len", "3"],
            "the workload sharegpt has no --input-len",
        ),
        (["--concurrency", "a"], "no list of numbers"),
        (["--extra-body", "[1]"], "--extra-body must be a JSON object"),
        (["--text"], "--text needs the model's folder"),
    ],
)
def test_wrong_usage_is_one_line(bench, null_server, arguments, message):
    _, url = null_server()
    code, _, _, err = bench("serving", "--url", url, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_preset_takes_its_load(bench, null_server):
    server, url = null_server()
    code, result, *_ = bench("serving", "--url", url, "--preset", "bs1", "--num-requests", 2)
    assert code == 0
    assert result["cells"][0]["load"]["concurrency"] == 1
    assert server.peak == 1
    assert {body["max_tokens"] for body in server.seen} == {512}
    assert all(body["stream"] for body in server.seen)


def test_self_test(bench):
    code, result, out, _ = bench("self-test", "--streams", 4, "--tokens", 100, "--servers", 1)
    assert code == 0
    assert result["chunks"] == 400
    assert "chunks/s per client process" in out


def test_startup_of_another_server(bench):
    server = shlex.join([sys.executable, "-m", "hpcserve.bench.null_server", "--port", "{port}"])
    code, result, out, _ = bench("startup", "--command", server, "--cold", "--show-log")
    assert code == 0
    run = result["runs"][0]
    assert 0 < run["port_open_s"] <= run["first_answer_s"] < 30
    assert "first answer" in out
    assert "the server reports no phases" in out


def test_startup_that_fails_shows_the_servers_words(bench, monkeypatch):
    read_log = startup._read_log

    def late(process):
        time.sleep(0.3)  # the end may be seen before the words are read
        read_log(process)

    monkeypatch.setattr(startup, "_read_log", late)
    server = shlex.join([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"])
    code, _, _, err = bench("startup", "--command", server)
    assert code == 1
    assert "ended with exit code 3" in err
    assert "no such model" in err


def test_traces_are_shown_and_summed(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    files = [tmp_path / f"hpcserve-noon-dp0-pp0-tp{rank}.trace.json" for rank in (0, 1)]
    long_name = f"void gemm<[int]>({'float const*, ' * 40})"
    for rank, file in enumerate(files):
        runs = [(long_name, 0, 30), (long_name, 40, 30), ("norm", 80, 10), ("copy", 90, 10 + rank)]
        events = [
            {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur}
            for name, ts, dur in runs
        ]
        file.write_text(json.dumps({"traceEvents": events}))
    output = tmp_path / "result.json"
    code, result, out, _ = bench("trace", *files, "--top", 1, "--output", output)
    assert code == 0
    assert [one["file"] for one in result["traces"]] == list(map(str, files))
    assert [one["busy_share"] for one in result["traces"]] == pytest.approx([0.8, 81 / 101])
    assert result["traces"][0]["kernels"] == [
        {"name": long_name, "count": 2, "mean_us": 30.0, "total_us": 60.0, "share": 0.75}
    ]
    assert result["traces"][0]["num_kernels"] == 3
    lines = out.splitlines()
    assert any("GPU busy 80.0%" in line for line in lines)
    row = next(line for line in lines if "gemm<[int]>(float" in line)
    assert len(row) == 70 and "…" in row and "30.00" in row and "75.0%" in row
    assert any("(2 others)" in line and "25.0%" in line for line in lines)
    assert len(json.loads(output.read_text())["traces"][1]["kernels"]) == 3


def test_a_file_that_is_no_trace_is_an_error_of_one_line(bench, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    code, result, out, err = bench("trace", tmp_path / "notes.txt")
    assert (code, result, out) == (2, None, "")
    assert err.startswith("error: ") and "is no trace of torch's profiler" in err
    assert len(err.splitlines()) == 1
