"""Sampling through ModelRunner: independence of rows, penalties, bias, log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.sampler import Sampler
from hpcserve.engine.worker import Worker
from hpcserve.ipc.messages import NewRequest
from hpcserve.sampling_params import SamplingParams
from hpcserve.testing import StepDriver, make_random_checkpoint

VOCAB = 131
EOS = 2
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, top_k=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_random_checkpoint(tmp_path_factory.mktemp("qwen3"), "qwen3")


@pytest.fixture
def driver(folder) -> StepDriver:
    options = {"device": "cpu", "cpu_threads": 1, "max_running_requests": 8}
    config = EngineConfig.from_options(
        {"model": str(folder), "max_total_tokens": 2048, "page_size": 16, **options}
    )
    return StepDriver(Worker(config).runner)


def _prompts(count, length=20):
    rng = np.random.default_rng(3)
    return [rng.integers(3, VOCAB, length + slot).tolist() for slot in range(count)]


def _alone(driver, prompt, params, num_tokens, seed=0, slot=5) -> list[int]:
    driver.admit(slot, prompt, params=params, seed=seed)
    text = [int(driver.submit([(slot, 0, len(prompt))]).sampled_token_ids[0])]
    for done in range(num_tokens - 1):
        output = driver.submit([(slot, len(prompt) + done, 1)], num_decodes=1)
        text.append(int(output.sampled_token_ids[0]))
    driver.release(slot)
    return text


def test_other_rows_change_nothing(driver):
    """Each row's tokens are those it gets alone in another slot, whatever runs beside it."""
    prompts = _prompts(5)
    params = [
        DRAWN,
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.5, min_p=0.02),
        SamplingParams(temperature=0.7, repetition_penalty=1.3, logit_bias={7: 4.0}),
        SamplingParams(temperature=1.0, presence_penalty=1.0, min_tokens=5),
    ]
    together = driver.generate(prompts, 12, params)
    for slot in range(5):
        driver.release(slot)
    for seed, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        assert _alone(driver, prompt, one, 12, seed) == together[seed]
    assert len({tuple(text) for text in together}) == 5


def test_seed_decides(driver):
    prompt = _prompts(1)[0]
    hot = SamplingParams(temperature=2.0)
    one, other = _alone(driver, prompt, hot, 8, seed=1), _alone(driver, prompt, hot, 8, seed=2)
    assert one == _alone(driver, prompt, hot, 8, seed=1)
    assert one != other
    large = _alone(driver, prompt, hot, 8, seed=2**64 - 1)
    assert large == _alone(driver, prompt, hot, 8, seed=-1)


def test_chunk_that_is_not_the_last_samples_nothing(driver):
    prompts = _prompts(2, 40)
    driver.admit(0, prompts[0])
    driver.admit(1, prompts[1])
    first = driver.submit([(0, 0, 40), (1, 0, 30)])
    assert first.sampled_token_ids[0] >= 0 and first.sampled_token_ids[1] == -1
    only_chunk = driver.submit([(1, 30, 5)])
    assert only_chunk.sampled_token_ids.tolist() == [-1]
    second = driver.submit([(0, 40, 1), (1, 35, 6)], num_decodes=1)
    assert (second.sampled_token_ids >= 0).all()
    driver.release(0)
    driver.release(1)
    greedy = SamplingParams(temperature=0.0)
    assert _alone(driver, prompts[1], greedy, 1) == [int(second.sampled_token_ids[1])]


def test_step_without_rows(driver):
    driver.admit(0, _prompts(1)[0])
    driver.submit([(0, 0, 20)])
    driver.release(0)
    output = driver.submit([])
    assert len(output.sampled_token_ids) == 0 and output.logprobs is None


def _penalised_by_hand(driver, prompt, params, num_tokens) -> list[int]:
    """Greedy over the plain model's logits, with the penalties written out."""
    text: list[int] = []
    for _ in range(num_tokens):
        driver.admit(6, prompt + text)
        logits = driver.logits([(6, 0, len(prompt) + len(text))])[0][-1].clone()
        driver.release(6)
        for token in set(prompt + text):
            value = logits[token]
            scale = params.repetition_penalty
            logits[token] = value / scale if value > 0 else value * scale
        for token in set(text):
            logits[token] -= params.frequency_penalty * text.count(token)
            logits[token] -= params.presence_penalty
        text.append(int(logits.argmax()))
    return text


PENALISED = SamplingParams(
    temperature=0.0, frequency_penalty=0.8, presence_penalty=0.5, repetition_penalty=1.4
)


def test_penalties_are_what_they_say(driver):
    prompt = _prompts(1)[0]
    wanted = _penalised_by_hand(driver, prompt, PENALISED, 14)
    assert _alone(driver, prompt, PENALISED, 14) == wanted
    assert _alone(driver, prompt, SamplingParams(temperature=0.0), 14) != wanted


@pytest.mark.parametrize("kept", [1, 6])
def test_penalties_survive_a_retraction(driver, kept):
    """A request that comes back with its outputs goes on as if it had never left."""
    prompt = _prompts(1)[0]
    whole = _alone(driver, prompt, PENALISED, 14)
    known = prompt + whole[:kept]
    driver.admit(3, known, params=PENALISED, num_prompt_tokens=len(prompt))
    text = [int(driver.submit([(3, 0, len(known))]).sampled_token_ids[0])]
    for done in range(13 - kept):
        output = driver.submit([(3, len(known) + done, 1)], num_decodes=1)
        text.append(int(output.sampled_token_ids[0]))
    assert text == whole[kept:]


def test_penalty_rows_are_reused_and_grow(driver):
    prompts = _prompts(8)
    for _ in range(2):
        texts = driver.generate(prompts, 6, [PENALISED] * 8)
        for slot in range(8):
            driver.release(slot)
        again = [_alone(driver, prompt, PENALISED, 6) for prompt in prompts]
        assert texts == again
    driver.submit([])
    assert len(driver.runner.sampler.penalties) == 0
    assert len(driver.runner.sampler.penalties.output_counts) == 8


def test_logit_bias_forces_and_forbids(driver):
    prompt = _prompts(1)[0]
    plain = _alone(driver, prompt, SamplingParams(temperature=0.0), 5)
    forced = SamplingParams(temperature=0.0, logit_bias={99: 100.0})
    assert _alone(driver, prompt, forced, 5) == [99] * 5
    forbidden = SamplingParams(temperature=0.0, logit_bias=dict.fromkeys(plain, -100.0))
    assert not set(_alone(driver, prompt, forbidden, 5)) & set(plain)


def test_min_tokens_masks_eos_and_stop_tokens_until_reached(driver):
    prompt = _prompts(1)[0]
    loud = {EOS: 100.0, 50: 90.0}
    free = SamplingParams(temperature=0.0, logit_bias=loud)
    assert _alone(driver, prompt, free, 2) == [EOS, EOS]
    held = SamplingParams(temperature=0.0, logit_bias=loud, min_tokens=3)
    assert _alone(driver, prompt, held, 5) == [50, 50, 50, EOS, EOS]
    stops = SamplingParams(temperature=0.0, logit_bias=loud, min_tokens=3, stop_token_ids=(50,))
    text = _alone(driver, prompt, stops, 4)
    assert not {EOS, 50} & set(text[:3]) and text[3] == EOS
    ignored = SamplingParams(temperature=0.0, logit_bias=loud, min_tokens=3, ignore_eos=True)
    assert _alone(driver, prompt, ignored, 2) == [EOS, EOS]


def test_an_end_beyond_the_vocabulary_is_masked_nowhere():
    """A checkpoint may name one: masking it would write beyond the row of logits."""
    sampler = Sampler(
        max_slots=1, vocab_size=8, eos_token_ids=[2, 8, 151645], device=torch.device("cpu")
    )
    params = SamplingParams(temperature=0.0, min_tokens=3)
    ids, none = np.array([1], np.int32), np.zeros(0, np.int32)
    sampler.add(NewRequest(0, ids, 1, none, params, seed=0))
    logits = torch.zeros(1, 8)
    logits[0, 2], logits[0, 5] = 9.0, 4.0
    slots, positions = np.zeros(1, np.int32), np.ones(1, np.int32)
    on_device = (torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    tokens, _ = sampler.sample(logits, slots, positions, *on_device)
    assert tokens.tolist() == [5]


def test_logprobs_are_the_models_own(driver):
    """Of the rows that asked, before penalties, bias and temperature."""
    prompts = _prompts(3)
    changed = {"temperature": 0.3, "repetition_penalty": 1.5, "logit_bias": {9: 5.0}}
    driver.admit(0, prompts[0])
    wanted = driver.logits([(0, 0, len(prompts[0]))])[0][-1].log_softmax(-1)
    driver.admit(1, prompts[0], params=SamplingParams(logprobs=3, **changed), seed=1)
    driver.admit(2, prompts[1], params=SamplingParams(temperature=1.0))
    driver.admit(3, prompts[0], params=SamplingParams(temperature=0.0, logprobs=0))
    rows = [(2, 0, len(prompts[1])), (1, 0, len(prompts[0])), (3, 0, len(prompts[0]))]
    output = driver.submit(rows)
    assert sorted(output.logprobs) == [1, 2]
    for row, count in ((1, 3), (2, 0)):
        entry, token = output.logprobs[row], int(output.sampled_token_ids[row])
        assert entry.logprob == pytest.approx(float(wanted[token]), abs=1e-4)
        top = wanted.topk(count)
        assert entry.top_token_ids == top.indices.tolist()
        assert entry.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-4)


def test_prompt_logprobs_over_chunks(driver):
    prompt = _prompts(1, 30)[0]
    driver.admit(0, prompt)
    every = driver.logits([(0, 0, 30)])[0].log_softmax(-1)
    driver.admit(1, prompt, params=SamplingParams(prompt_logprobs=2))
    driver.admit(2, prompt)
    found = []
    for start, count in ((0, 7), (7, 1), (8, 22)):
        output = driver.submit([(2, start, count), (1, start, count)])
        assert list(output.prompt_logprobs) == [1]
        found += output.prompt_logprobs[1]
    assert len(found) == 29
    for position, entry in enumerate(found):
        wanted = every[position]
        assert entry.logprob == pytest.approx(float(wanted[prompt[position + 1]]), abs=1e-4)
        assert entry.top_token_ids == wanted.topk(2).indices.tolist()
    assert driver.submit([(1, 30, 1)], num_decodes=1).prompt_logprobs is None


def test_nothing_is_kept_for_plain_requests(driver):
    sampler = driver.runner.sampler
    driver.generate(_prompts(3), 3)
    assert sampler.penalties.output_counts.numel() == 0
    assert len(sampler.bias) == 0


def test_default_dtype_is_left_alone(driver):
    assert torch.get_default_dtype() == torch.float32
