from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from hpcserve.bench.sse import SSEReader


def event(text="a", **more):
    return b"data: " + json.dumps({"choices": [{"text": text, **more}]}).encode()


USAGE = b'data: {"choices":[],"usage":{"completion_tokens":3}}'
DONE = b"data: [DONE]"
COMMENT = b": ping"


@given(
    st.lists(st.sampled_from([event(), event("\n\n"), COMMENT]), max_size=8),
    st.lists(st.integers(0, 600), max_size=8),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_are_found_wherever_the_bytes_are_cut(events, cuts, line_end):
    stream = b"".join(one + line_end * 2 for one in [*events, USAGE, DONE])
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader = SSEReader(keep=True)
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        reader.feed(stream[begin:end], float(number))
    tokens = [one for one in events if one != COMMENT]
    assert len(reader.times) == len(tokens)
    assert reader.payloads == [one[6:] for one in tokens]
    assert list(reader.times) == sorted(reader.times)
    assert json.loads(reader.usage_event)["usage"] == {"completion_tokens": 3}
    assert reader.done
    assert not reader.error


def test_chunks_get_the_time_they_came():
    reader = SSEReader()
    reader.feed(event() + b"\n\n", 1.0)
    reader.feed(event() + b"\n\n" + event()[:9], 2.0)
    reader.feed(event()[9:] + b"\n\n", 3.0)
    assert list(reader.times) == [1.0, 2.0, 3.0]


def test_usage_that_is_null_is_no_usage():
    reader = SSEReader()
    reader.feed(b'data: {"choices":[{"text":"a"}],"usage":null}\n\n', 1.0)
    reader.feed(b'data: {"choices":[{"text":"a"}], "usage": null}\n\n', 1.0)
    assert reader.usage_event == b""
    assert len(reader.times) == 2


def test_an_error_event_is_no_token():
    reader = SSEReader()
    reader.feed(b'data: {"error":{"message":"dead"}}\n\n', 1.0)
    assert json.loads(reader.error)["error"]["message"] == "dead"
    assert not reader.times
