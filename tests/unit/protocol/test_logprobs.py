import pytest

from hpcserve.fake_engine import write_byte_tokenizer
from hpcserve.outputs import TokenLogprob
from hpcserve.protocol.logprobs import completion_logprobs
from hpcserve.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_the_chosen_token_is_among_the_likeliest(tokenizer):
    """As OpenAI says of completions: there may be one more than was asked for."""
    unlikely = TokenLogprob(ord("z"), -7.0, [(ord("a"), -0.5), (ord("b"), -1.0)])
    likely = TokenLogprob(ord("a"), -0.5, [(ord("a"), -0.5), (ord("b"), -1.0)])
    alone = TokenLogprob(ord("c"), -2.0, [])
    found = completion_logprobs([unlikely, likely, alone], [*b"zac"], tokenizer)
    assert found.top_logprobs == [
        {"a": -0.5, "b": -1.0, "z": -7.0},
        {"a": -0.5, "b": -1.0},
        {"c": -2.0},
    ]
    assert found.token_logprobs == [-7.0, -0.5, -2.0]
