import pytest

from hpcserve.bench import one_batch
from hpcserve.bench.report import print_cells


def cell(load: str, **medians: float) -> dict[str, object]:
    """A run in which each latency's figures are its p50's."""
    for name in [name for name in medians if name.endswith("__p50")]:
        rest = ("mean", "p90", "p99", "max")
        medians = {name.replace("p50", one): medians[name] for one in rest} | medians
    summary = {name.replace("__", "."): {"median": value} for name, value in medians.items()}
    found = {
        name: one | {"min": one["median"], "max": one["median"]} for name, one in summary.items()
    }
    return {"load": {"label": load}, "runs": [{}], "summary": found}


@pytest.mark.parametrize("load", ["c=256", "all at once", "16 req/s, at most 256 open"])
def test_a_sweep_is_whole_in_80_columns(capsys, monkeypatch, load):
    monkeypatch.setenv("COLUMNS", "80")
    figures = {
        "output_tok_s": 106_293.4,
        "requests_per_s": 4_120.4,
        "ttft_ms__p50": 15_600.4,
        "ttft_ms__p99": 127_000.2,
        "itl_ms__p50": 21.94,
        "itl_ms__p99": 143.21,
        "tpot_ms__p50": 4.192,
        "e2e_ms__p50": 205_210.3,
        "num_errors": 12_345.0,
    }
    print_cells([cell("c=1", **figures), cell(load, **figures)], "sharegpt")
    overview = capsys.readouterr().out.rpartition("· all")[2]
    numbers = ("106,293", "4,120", "15,600", "127,000", "21.9", "143", "4.19", "205,210", "12,345")
    for number in numbers:
        assert overview.count(number) == 2, overview
    assert "…" not in overview


def test_steps_are_whole_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {
        "batch_size": 256,
        "input_len": 131_072,
        "prefill_ms": {"median": 261_054.42},
        "prefill_floor_ms": 53_421.12,
        "prefill_tok_s": 10_042.1,
        "decode_ms": {"median": 117.123},
        "decode_floor_ms": 113.123,
        "mbu": 0.871,
        "decode_tok_s": 15_042.0,
    }
    reason = "its 1,574,912 tokens do not fit the pool of 858,000"
    one_batch.print_rows([row, {"batch_size": 1024, "input_len": 1024, "skipped": reason}])
    shown = capsys.readouterr().out
    for number in ("261,054.42", "53,421.12", "10,042", "117.123", "113.123", "87.1%", "15,042"):
        assert number in shown, shown
    assert f"batch 1024 x 1024: {reason}" in shown.replace("\n", " ")
    assert "…" not in shown
