import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcserve.engine.open_request import OpenRequest
from hpcserve.engine.output_processor import OutputProcessor
from hpcserve.errors import EngineDeadError
from hpcserve.fake_engine import IM_END, write_byte_tokenizer
from hpcserve.ipc.messages import EngineCoreOutputs, FinishedRequest, TokenLogprobs
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


class Reader:
    """Opens one request, and collects what it is told."""

    def __init__(self, tokenizer, streams=True, processor=None, **params):
        self.processor = processor or OutputProcessor()
        self.request = OpenRequest(
            "name", [1, 2, 3], SamplingParams(**params), tokenizer, streams=streams
        )
        self.ids = [answer.request_id for answer in self.processor.open(self.request)]
        self.num_told = 0
        self.request.notify = self.told
        self.news = []

    def told(self):
        self.num_told += 1

    def step(self, token_ids, finish=None, stop_token_id=None, **more):
        """One step for the answers in order; `finish` ends all of them."""
        ids = self.ids[: len(token_ids)]
        ended = [FinishedRequest(n, finish, stop_token_id, 2) for n in ids] if finish else []
        stopped = self.processor.process(EngineCoreOutputs(ids, list(token_ids), ended, **more))
        news = self.request.take()
        if news is not None:
            self.news.append(news)
        return stopped

    def text(self, index=0):
        found = [o for n in self.news for o in n.outputs if o.index == index]
        return "".join(output.text for output in found)

    def last(self, index=0):
        return [o for n in self.news for o in n.outputs if o.index == index][-1]


def feed(reader, text, finish="length"):
    data = list(text.encode())
    for byte in data[:-1]:
        if reader.step([byte]):
            return
    reader.step([data[-1]], finish)


def test_deltas_join_to_the_text_and_half_characters_wait(tokenizer):
    reader = Reader(tokenizer)
    feed(reader, "aé🙂")
    assert [n.outputs[0].text for n in reader.news] == ["a", "é", "🙂"]
    assert [n.outputs[0].token_ids for n in reader.news][1] == list("é".encode())
    assert reader.last().finish_reason == "length"
    assert reader.news[-1].finished
    assert reader.news[-1].num_cached_tokens == 2
    assert len(reader.processor) == 0
    assert reader.processor.take_finished() == ["name"]


def test_without_stream_there_is_one_news(tokenizer):
    reader = Reader(tokenizer, streams=False)
    feed(reader, "hello")
    assert reader.num_told == 1
    [news] = reader.news
    assert news.outputs[0].text == "hello"
    assert news.outputs[0].token_ids == list(b"hello")


@pytest.mark.parametrize("streams", [True, False])
def test_stop_token_is_in_the_ids_but_not_in_the_text(tokenizer, streams):
    reader = Reader(tokenizer, streams=streams, skip_special_tokens=False)
    reader.step([ord("a")])
    reader.step([ord("!")], "stop", ord("!"))
    assert reader.text() == "a"
    assert reader.last().stop_reason == ord("!")
    shown = Reader(tokenizer, streams=streams, include_stop_str_in_output=True)
    shown.step([ord("!")], "stop", ord("!"))
    assert shown.text() == "!"
    eos = Reader(tokenizer, streams=streams, skip_special_tokens=False)
    eos.step([IM_END], "stop", IM_END)
    assert eos.text() == ""
    assert eos.last().token_ids == [IM_END]


@pytest.mark.parametrize("streams", [True, False])
def test_stop_string_ends_it_here(tokenizer, streams):
    reader = Reader(tokenizer, streams=streams, stop=("lo",))
    for byte in b"hel":
        assert reader.step([byte], num_cached_tokens=[(0, 1)]) == []
    assert reader.step([ord("o")]) == [0]
    assert reader.text() == "he"
    assert (reader.last().finish_reason, reader.last().stop_reason) == ("stop", "lo")
    assert reader.news[-1].num_cached_tokens == 1
    assert reader.step([ord("x")]) == []  # what was on its way is ignored
    assert reader.request.finished


def test_stop_string_and_length_in_one_step_need_no_abort(tokenizer):
    reader = Reader(tokenizer, stop=("o",))
    assert reader.step([ord("o")], "length") == []
    assert reader.last().finish_reason == "stop"
    assert reader.text() == ""


def test_held_back_text_comes_out_at_the_end(tokenizer):
    reader = Reader(tokenizer, stop=("END",))
    feed(reader, "the EN")
    assert reader.text() == "the EN"
    assert reader.last().finish_reason == "length"


def test_min_tokens_passes_stop_strings(tokenizer):
    reader = Reader(tokenizer, stop=("a",), min_tokens=3)
    feed(reader, "aaXXa")
    assert reader.text() == "aaXX"
    assert reader.last().finish_reason == "stop"


def test_a_stop_string_may_end_with_the_last_of_min_tokens(tokenizer):
    reader = Reader(tokenizer, stop=("a",), min_tokens=3)
    feed(reader, "XXaX")
    assert reader.text() == "XX"
    assert reader.last().finish_reason == "stop"


@pytest.mark.parametrize("streams", [True, False])
def test_an_abort_gives_out_what_was_held_back(tokenizer, streams):
    reader = Reader(tokenizer, streams=streams, stop=("END",))
    for byte in b"the EN":
        reader.step([byte])
    assert reader.text() == ("the " if streams else "")
    reader.processor.close(reader.request)
    reader.news.append(reader.request.take())
    assert reader.text() == "the EN"
    assert reader.last().finish_reason == "abort"


@settings(max_examples=60)
@given(
    text=st.text(alphabet="aé🙂b", min_size=1), stop=st.lists(st.sampled_from(["ab", "é🙂", "bb"]))
)
def test_stream_and_whole_agree(tokenizer, text, stop):
    streamed = Reader(tokenizer, stop=tuple(stop))
    whole = Reader(tokenizer, streams=False, stop=tuple(stop))
    feed(streamed, text)
    feed(whole, text)
    assert streamed.text() == whole.text()
    assert streamed.last().finish_reason == whole.last().finish_reason
    tokens = [t for n in streamed.news for o in n.outputs for t in o.token_ids]
    assert tokens == whole.last().token_ids


def test_answers_end_one_by_one(tokenizer):
    reader = Reader(tokenizer, n=2)
    assert reader.ids == [0, 1]
    reader.step([ord("a"), ord("b")])
    reader.processor.process(
        EngineCoreOutputs([0], [ord("c")], [FinishedRequest(0, "length", None, 2)])
    )
    first = reader.request.take()
    assert [(o.index, o.text, o.finish_reason) for o in first.outputs] == [(0, "c", "length")]
    assert not first.finished
    assert reader.processor.take_finished() == []
    reader.ids = [1]
    reader.step([ord("d")], "length")
    assert reader.text(0) == "a"
    assert reader.text(1) == "bd"
    assert reader.news[-1].finished
    assert reader.request.take() is None


def test_logprobs_are_aligned(tokenizer):
    reader = Reader(tokenizer, logprobs=1, prompt_logprobs=0)
    entry = TokenLogprobs(-0.25, [7], [-0.125])
    half = "é".encode()
    reader.step([half[0]], logprobs=[entry], prompt_logprobs=[(0, [entry, entry])])
    reader.step([half[1]], "length", logprobs=[entry])
    [news] = reader.news
    assert [p.token_id for p in news.outputs[0].logprobs] == list(half)
    assert news.outputs[0].logprobs[0].top == [(7, -0.125)]
    assert [p.token_id for p in news.prompt_logprobs] == [2, 3]


def test_deltas_bring_their_own_logprobs_alone(tokenizer):
    reader = Reader(tokenizer, logprobs=0)
    reader.step([ord("a")], logprobs=[TokenLogprobs(-0.5, [], [])])
    reader.step([ord("b")], "length", logprobs=[TokenLogprobs(-0.25, [], [])])
    assert [[p.logprob for p in n.outputs[0].logprobs] for n in reader.news] == [[-0.5], [-0.25]]


def test_times_are_those_of_arrival_first_token_and_end(tokenizer):
    reader = Reader(tokenizer)
    reader.step([ord("a")], num_cached_tokens=[(0, 0)])
    feed(reader, "bc")
    first, *_, last = reader.news
    assert first.arrival_s < first.first_token_s == last.first_token_s
    assert first.finished_s == 0.0
    assert last.finished_s > last.first_token_s


def test_an_error_that_comes_after_the_end_is_none(tokenizer):
    reader = Reader(tokenizer)
    feed(reader, "a")
    assert reader.processor.take_finished() == ["name"]
    assert reader.processor.close(reader.request, EngineDeadError("gone")) == []
    assert reader.request.error is None
    assert reader.processor.take_finished() == []


def test_closing_keeps_the_text_so_far(tokenizer):
    for streams in (True, False):
        reader = Reader(tokenizer, streams=streams, n=2)
        reader.step([ord("a"), ord("b")])
        assert reader.processor.close(reader.request) == [0, 1]
        reader.news.append(reader.request.take())
        assert (reader.text(0), reader.text(1)) == ("a", "b")
        assert reader.last().finish_reason == "abort"
        assert reader.processor.close(reader.request) == []


def test_an_error_is_raised_to_the_reader(tokenizer):
    reader = Reader(tokenizer)
    reader.step([ord("a")])
    reader.processor.process(EngineCoreOutputs([0], [ord("b")], []))
    assert reader.processor.close(reader.request, EngineDeadError("gone")) == [0]
    assert reader.request.take().outputs[0].text == "b"  # what came before it is not lost
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="gone"):
            reader.request.take()
    whole = Reader(tokenizer, streams=False, stop=("x",))
    whole.step([ord("a")])
    whole.processor.close(whole.request, EngineDeadError("gone"))
    assert whole.num_told == 1
    with pytest.raises(EngineDeadError):
        whole.request.take()
    with pytest.raises(EngineDeadError, match="gone"):
        reader.request.take()
    assert reader.processor.take_finished() == ["name"]


def test_unread_news_are_merged_and_told_once(tokenizer):
    reader = Reader(tokenizer)
    for byte in b"abc":
        reader.processor.process(EngineCoreOutputs([0], [byte], []))
    assert reader.num_told == 1
    news = reader.request.take()
    assert (news.outputs[0].text, news.outputs[0].token_ids) == ("abc", list(b"abc"))


def test_plain_text_is_taken_with_the_number_of_its_tokens(tokenizer):
    reader = Reader(tokenizer)
    ids, process = reader.ids, reader.processor.process
    process(EngineCoreOutputs(ids, [ord("a")], []))
    assert reader.request.take_text() == ("a", 1)
    for byte in "bé".encode():
        process(EngineCoreOutputs(ids, [byte], []))
    assert reader.request.take_text() == ("bé", 3)
    process(EngineCoreOutputs(ids, ["é".encode()[0]], []))
    assert reader.request.take_text() == ("", 0)
    process(EngineCoreOutputs(ids, ["é".encode()[1]], []))
    assert reader.request.take_text() == ("é", 2)
    process(EngineCoreOutputs(ids, [ord("c")], [FinishedRequest(0, "length", None, 2)]))
    assert reader.request.take_text() is None
    [last] = reader.request.take().outputs
    assert (last.text, last.token_ids, last.finish_reason) == ("c", [ord("c")], "length")
