from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hpcserve.errors import InvalidParameterError
from hpcserve.sampling_params import SamplingParams


def test_one_stop_string_is_not_a_sequence_of_characters() -> None:
    params = SamplingParams(stop="###")  # type: ignore[arg-type]
    assert params.stop == ("###",)
    encoded = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(encoded, type=SamplingParams) == params


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 5.0),
        ("temperature", "0.5"),
        ("n", 2.0),
        ("seed", 1.5),
        ("stop", [5]),
        ("stop", None),
        ("stop_token_ids", 5),
        ("logit_bias", {"5": 1.0}),
        ("logit_bias", {5: "x"}),
        ("ignore_eos", 1),
        ("top_k", 2**70),
        ("min_tokens", 2**70),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
    ],
)
def test_what_the_core_could_not_read_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameterError, match=f"^{name}: ") as caught:
        SamplingParams(**{name: value}).validate()
    assert caught.value.param == name


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 2**64 - 1},
        {"seed": -(2**63)},
        {"temperature": 1},
        {"stop": ["a", "b"]},
        {"stop_token_ids": [1, 2]},
        {"logit_bias": {5: 1}},
        {"top_k": 2**31 - 1},
    ],
)
def test_what_passes_can_be_read_by_the_core(values: dict[str, Any]) -> None:
    params = SamplingParams(**values)
    params.validate()
    msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
