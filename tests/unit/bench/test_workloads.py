from __future__ import annotations

import itertools
import json
import statistics

import pytest

from hpcserve.bench.lengths import LogNormal
from hpcserve.bench.presets import PRESETS
from hpcserve.bench.request import chains_of
from hpcserve.bench.selection import select
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.trace import load_trace, save_trace
from hpcserve.bench.workloads.base import make_workload, workload_names
from hpcserve.bench.workloads.json import SCHEMAS
from hpcserve.errors import ConfigError, InputError, UsageError


def build(name, run=1, seed=0, **values):
    return make_workload(name, values).build(TokenSource.make(seed=seed, run=run))


SMALL = {
    "json": {"num_requests": 6},
    "lognormal": {"num_requests": 6},
    "long-context": {"num_requests": 2, "input_len": 300, "background": True},
    "multi-turn": {"num_chats": 2, "num_turns": 3},
    "prefix": {"num_groups": 2, "questions_per_group": 3, "prefix_len": 50},
    "random": {"num_requests": 6, "range_ratio": 0.5},
    "sharegpt": {"num_requests": 6},
}


def test_every_workload_is_listed_here():
    assert workload_names() == sorted(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_same_seed_same_requests_and_fresh_ids_per_run(name):
    first, again, other = (build(name, run, **SMALL[name]) for run in (1, 1, 2))
    assert first == again
    # Another run has the same shape but none of the prompts.
    for one, two in zip(first, other, strict=True):
        assert len(one.prompt_token_ids) == len(two.prompt_token_ids)
        assert (one.max_tokens, one.arrival_s, one.think_s) == (
            two.max_tokens,
            two.arrival_s,
            two.think_s,
        )
        assert one.prompt_token_ids[:16] != two.prompt_token_ids[:16]
    for request in first:
        request.check(name)
        assert all(3200 <= token < 28800 for token in request.prompt_token_ids)


def test_another_seed_draws_other_lengths():
    lengths = [
        [len(one.prompt_token_ids) for one in build("sharegpt", seed=seed, num_requests=20)]
        for seed in (0, 1)
    ]
    assert lengths[0] != lengths[1]


@pytest.mark.parametrize(("mean", "sigma", "high"), [(220, 1.2, 2048), (512, 0.7, 4096)])
def test_lognormal_mean_is_the_mean_after_the_cut(mean, sigma, high):
    import numpy as np

    lengths = LogNormal(mean=mean, sigma=sigma, low=4, high=high)
    drawn = lengths.draw(np.random.default_rng(3), 200_000)
    assert lengths.expected == pytest.approx(mean, rel=1e-6)
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.01)
    assert min(drawn) >= 4
    assert max(drawn) <= high


def test_lognormal_median_is_the_median_before_the_cut():
    import numpy as np

    drawn = LogNormal(median=130, sigma=1.4, low=4, high=2048).draw(
        np.random.default_rng(3), 50_000
    )
    assert statistics.median(drawn) == pytest.approx(130, rel=0.03)


def test_lognormal_takes_a_mean_or_a_median():
    with pytest.raises(ConfigError, match="either a mean or a median"):
        LogNormal(sigma=1.0, low=4, high=100)


def preset_requests(name):
    preset = PRESETS[name]
    return build(preset.workload, **preset.values)


def test_preset_bs1():
    requests = preset_requests("bs1")
    assert {(len(one.prompt_token_ids), one.max_tokens) for one in requests} == {(128, 512)}
    assert PRESETS["bs1"].concurrency == 1


def test_preset_c256():
    requests = preset_requests("c256")
    assert len(requests) == 1024
    assert {one.max_tokens for one in requests} == {256}
    mean = statistics.fmean(len(one.prompt_token_ids) for one in requests)
    assert mean == pytest.approx(512, rel=0.08)
    assert PRESETS["c256"].concurrency == 256


def test_preset_sharegpt():
    requests = preset_requests("sharegpt")
    assert len(requests) == 3000
    assert statistics.fmean(len(one.prompt_token_ids) for one in requests) == pytest.approx(
        220, rel=0.08
    )
    assert statistics.fmean(one.max_tokens for one in requests) == pytest.approx(190, rel=0.08)
    assert max(len(one.prompt_token_ids) for one in requests) <= 2048
    assert max(one.max_tokens for one in requests) <= 1024
    assert PRESETS["sharegpt"].concurrency is None
    assert not PRESETS["sharegpt"].stream


def test_preset_prefix():
    requests = preset_requests("prefix")
    assert len(requests) == 1024
    prefixes = {}
    for one in requests:
        assert len(one.prompt_token_ids) == 2048 + 64
        assert one.max_tokens == 32
        prefixes.setdefault(one.group, []).append(tuple(one.prompt_token_ids[:2048]))
    assert len(prefixes) == 32
    assert all(len(found) == 32 and len(set(found)) == 1 for found in prefixes.values())
    # Not group after group: that would be another workload.
    assert len({one.group for one in requests[:32]}) > 8


def test_zipf_asks_the_first_group_most():
    requests = build("prefix", num_groups=8, questions_per_group=50, prefix_len=4, zipf=1.0)
    counts = [sum(one.group == group for one in requests) for group in range(8)]
    assert counts[0] > 2 * counts[4] > 0
    assert sum(counts) == 400


def test_multi_turn_repeats_its_history():
    requests = build("multi-turn", num_chats=3, num_turns=3, input_len=10, output_len=5)
    chains = chains_of(requests)
    assert [len(chain) for chain in chains] == [3, 3, 3]
    for chain in chains:
        turns = [requests[index] for index in chain]
        assert [len(one.prompt_token_ids) for one in turns] == [10, 25, 40]
        for before, after in itertools.pairwise(turns):
            assert after.prompt_token_ids[: len(before.prompt_token_ids)] == before.prompt_token_ids
        assert turns[0].think_s == 0.0
        assert all(one.think_s > 0 for one in turns[1:])


def test_long_prompts_arrive_among_short_streams():
    requests = build("long-context", num_requests=1, input_len=500, background=True)
    assert sum(one.group == "background" for one in requests) == 64
    long = [one for one in requests if one.group == "long"]
    assert [(len(one.prompt_token_ids), one.arrival_s) for one in long] == [(500, 3.0)]


def test_json_requests_carry_their_schema_and_free_ones_do_not():
    bound = build("json", num_requests=3)
    names = [one.body["response_format"]["json_schema"]["name"] for one in bound]
    assert names == list(SCHEMAS)
    assert not any(one.ignore_eos for one in bound)
    free = build("json", num_requests=3, free=True)
    assert all(one.ignore_eos and not one.body for one in free)


def test_json_answers_are_judged():
    from hpcserve.bench.record import RequestRecord

    workload = make_workload("json", {"num_requests": 4})
    requests = workload.build(TokenSource.make(seed=0, run=0))
    point = {"color": "red", "filled": True}
    answers = [
        {"color": "red", "size": "M", "in_stock": False},
        {"first": point, "second": {"inner": point, "seen": False}, "done": True},
        {"colors": ["red"]},  # too few
    ]
    texts = [*map(json.dumps, answers), '{"color": "re']
    records = [
        RequestRecord(index, text=text, finish_reason="length" if index == 3 else "stop")
        for index, text in enumerate(texts)
    ]
    judged = workload.judge(requests, records)
    assert judged == {"json_valid": 2, "json_cut": 1, "json_valid_share": 0.5}


def test_unknown_parameters_are_refused_with_those_that_exist():
    with pytest.raises(UsageError, match=r"random has no --prefix-len; it has --input-len"):
        make_workload("random", {"prefix_len": 3})
    with pytest.raises(ConfigError, match="choose one of"):
        make_workload("rnadom", {})
    with pytest.raises(ConfigError, match="num_requests is 0"):
        make_workload("random", {"num_requests": 0})


def test_traces_come_back_as_they_were(tmp_path):
    requests = build("multi-turn", num_chats=2, num_turns=2) + build("json", num_requests=1)
    save_trace(tmp_path / "trace.jsonl", requests)
    assert load_trace(tmp_path / "trace.jsonl") == requests


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"max_tokens": 3}', "either prompt_token_ids or prompt"),
        ('{"max_tokens": 0, "prompt": "x"}', "max_tokens is 0"),
        ('{"max_tokens": 3, "prompt_token_ids": []}', "the prompt is empty"),
        ('{"prompt": "x"}', "max_tokens"),
        ("nonsense", "malformed"),
    ],
)
def test_bad_trace_lines_are_named(tmp_path, line, problem):
    file = tmp_path / "trace.jsonl"
    file.write_text('{"max_tokens": 3, "prompt": "x"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=rf"trace\.jsonl:3: .*{problem}"):
        load_trace(file)


def test_every_command_draws_other_ids_of_the_same_lengths():
    """Else a second command would find the first one's prompts in the server's cache."""
    chosen = select(workload="lognormal", preset=None, trace=None, values={"num_requests": 8})
    one, other = (chosen.drawer(seed=0, vocab_size=1000) for _ in range(2))
    first, second = one(1), other(1)
    assert first == one(1)
    ids = [request.prompt_token_ids for request in first]
    assert [len(one) for one in ids] == [len(request.prompt_token_ids) for request in second]
    assert not any(
        one == request.prompt_token_ids for one, request in zip(ids, second, strict=True)
    )
