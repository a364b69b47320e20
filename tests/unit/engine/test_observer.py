"""Times between tokens: looked up once a message, told for all of its requests."""

from hpcserve.engine.observer import TokenGaps
from hpcserve.engine.open_request import OpenRequest
from hpcserve.engine.output_processor import OutputProcessor
from hpcserve.errors import QueueFullError
from hpcserve.fake_engine import write_byte_tokenizer
from hpcserve.ipc.messages import EngineCoreOutputs, FinishedRequest
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer


def step(ids, new=()):
    return EngineCoreOutputs(
        list(ids), [1] * len(ids), [], num_cached_tokens=[(one, 0) for one in new]
    )


def test_first_tokens_have_none_before_them():
    gaps = TokenGaps()
    assert gaps.add(1.0, step([1, 2], new=[1, 2])) is None
    assert gaps.add(1.5, step([1, 2, 3], new=[3])) == (0.5, 2)
    assert gaps.add(1.75, step([1, 2, 3])) == (0.25, 3)
    # A new one may stand first, where replicas step together.
    assert gaps.add(2.0, step([4, 3], new=[4])) == (0.25, 1)


def test_micro_batches_that_take_turns_are_told_apart():
    gaps = TokenGaps()
    gaps.add(0.0, step([1, 2], new=[1, 2]))
    gaps.add(1.0, step([3], new=[3]))
    assert gaps.add(2.0, step([1, 2])) == (2.0, 2)
    assert gaps.add(3.5, step([3])) == (2.5, 1)


def test_one_that_was_away_for_long_is_left_out():
    gaps = TokenGaps()
    gaps.add(0.0, step([1], new=[1]))
    for number in range(20):
        gaps.add(1.0 + number, step([2], new=[2] if number == 0 else []))
    assert gaps.add(30.0, step([1])) is None


class Heard:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.first, self.tokens, self.ended = [], [], []

    def on_first_token(self, request, queued_s):
        self.first.append((request.name, queued_s))

    def on_tokens(self, replica, gap_s, count):
        assert gap_s >= 0
        self.tokens.append((replica, count))

    def on_end(self, request):
        error = None if request.error is None else type(request.error)
        self.ended.append((request.name, request.finish_reason, error, request.num_output_tokens))


def test_each_request_is_told_of_once(tmp_path):
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
    processor = OutputProcessor()
    processor.observer = heard = Heard()
    params = SamplingParams(n=2)
    two = OpenRequest("two", [1], params, tokenizer, streams=True)
    bad = OpenRequest("bad", [1], SamplingParams(), tokenizer, streams=False)
    first, second = (answer.request_id for answer in processor.open(two))
    processor.open(bad)
    processor.close(bad, QueueFullError("full"))
    facts = {"num_cached_tokens": [(first, 0), (second, 0)], "queued_s": [0.5, 0.75]}
    processor.process(EngineCoreOutputs([first, second], [97, 97], [], **facts), 3)
    ended = [FinishedRequest(first, "stop", None, 0)]
    processor.process(EngineCoreOutputs([first, second], [98, 98], ended), 3)
    two.take()  # forgets the answer that has ended
    ended = [FinishedRequest(second, "length", None, 0)]
    processor.process(EngineCoreOutputs([second], [99], ended), 3)
    assert heard.first == [("two", 0.5)]
    assert heard.tokens == [(3, 2), (3, 1)]
    assert heard.ended == [("bad", None, QueueFullError, 0), ("two", "length", None, 5)]
