import numpy as np

from hpcserve.engine.grammar_gate import GrammarGate
from hpcserve.grammar import Grammar
from hpcserve.ipc.messages import EngineCoreRequest, GrammarCompiled
from hpcserve.sampling_params import SamplingParams

A, B = Grammar.regex("a"), Grammar.regex("b")


class Executor:
    """Compiles nothing; `done` is what it says next."""

    def __init__(self):
        self.asked, self.done = [], []

    def compile_grammar(self, grammar):
        self.asked.append(grammar)

    def compiled_grammars(self):
        done, self.done = self.done, []
        return done


def request(number, grammar):
    params = SamplingParams(grammar=grammar)
    return EngineCoreRequest(number, np.zeros(1, np.int32), params)


def test_requests_wait_for_their_own_grammar_alone():
    executor = Executor()
    gate = GrammarGate(executor)
    assert gate.admits(b"f", request(1, None))
    assert not gate.admits(b"f", request(2, A))
    assert not gate.admits(b"g", request(3, A))
    assert not gate.admits(b"f", request(4, B))
    assert executor.asked == [A, B] and len(gate) == 3
    assert gate.opened() == []
    executor.done = [GrammarCompiled(A)]
    opened = gate.opened()
    assert [(frontend, one.request_id, error) for frontend, one, error in opened] == [
        (b"f", 2, None),
        (b"g", 3, None),
    ]
    assert gate.admits(b"f", request(5, A)), "it is known now"
    executor.done = [GrammarCompiled(B, "no")]
    assert [(one.request_id, error) for _, one, error in gate.opened()] == [(4, "no")]
    assert not gate.admits(b"f", request(6, B)), "a bad one is tried again"
    assert executor.asked == [A, B, B]


def test_an_abort_forgets_what_waits():
    executor = Executor()
    gate = GrammarGate(executor)
    for number, frontend in enumerate([b"f", b"f", b"g", b"g"]):
        gate.admits(frontend, request(number, A))
    gate.abort(b"f", [1, 2])
    gate.abort(b"g")
    executor.done = [GrammarCompiled(A), GrammarCompiled(A)]
    assert [one.request_id for _, one, _ in gate.opened()] == [0]
    assert len(gate) == 0 and gate.opened() == []


def test_known_grammars_are_bounded():
    executor = Executor()
    gate = GrammarGate(executor)
    for number in range(200):
        grammar = Grammar.regex(f"a{number}")
        gate.admits(b"f", request(number, grammar))
        executor.done = [GrammarCompiled(grammar)]
        gate.opened()
    assert not gate.admits(b"f", request(0, Grammar.regex("a0")))
    assert gate.admits(b"f", request(1, Grammar.regex("a199")))
