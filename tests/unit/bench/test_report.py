import pytest

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
