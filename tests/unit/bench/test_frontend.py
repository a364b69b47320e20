from hpcserve.bench.frontend import FrontendPlan, bench_frontend


def test_every_token_reaches_its_client():
    result = bench_frontend(FrontendPlan(streams=8, tokens=30, rate=2000.0, num_frontends=2))
    assert result["errors"] == 0
    assert result["frontends"] == 2
    tokens = result["tokens_per_s"] * result["duration_s"]
    assert round(tokens) == 8 * 30
    chunks = result["chunks_per_s"] * result["duration_s"]
    assert round(tokens / chunks, 6) == round(result["tokens_per_chunk"], 6)
    assert 0 < result["cpu_us_per_token"] <= result["cpu_us_per_chunk"]
