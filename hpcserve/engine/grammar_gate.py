"""Holds requests whose grammar is being compiled, so that none waits for another's."""

from __future__ import annotations

from collections import OrderedDict

from hpcserve.engine.executor import Executor
from hpcserve.grammar import Grammar
from hpcserve.ipc.messages import EngineCoreRequest

#: Grammars that are known to compile; fewer than workers keep compiled.
_KNOWN = 128


class GrammarGate:
    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._known: OrderedDict[Grammar, None] = OrderedDict()
        self._waiting: dict[Grammar, list[tuple[bytes, EngineCoreRequest]]] = {}

    def __len__(self) -> int:
        return sum(len(held) for held in self._waiting.values())

    def admits(self, frontend: bytes, request: EngineCoreRequest) -> bool:
        """False where the request stays here until `opened` gives it back."""
        grammar = request.params.grammar
        if grammar is None:
            return True
        if grammar in self._known:
            self._known.move_to_end(grammar)
            return True
        if grammar not in self._waiting:
            self._waiting[grammar] = []
            self._executor.compile_grammar(grammar)
        self._waiting[grammar].append((frontend, request))
        return False

    def opened(self) -> list[tuple[bytes, EngineCoreRequest, str | None]]:
        """(frontend, request, why its grammar is unusable or None), as far as it is known by now."""
        found: list[tuple[bytes, EngineCoreRequest, str | None]] = []
        if not self._waiting:
            return found
        for compiled in self._executor.compiled_grammars():
            held = self._waiting.pop(compiled.grammar, [])
            found += [(frontend, request, compiled.error) for frontend, request in held]
            if compiled.error is None:
                self._known[compiled.grammar] = None
                while len(self._known) > _KNOWN:
                    self._known.popitem(last=False)
        return found

    def abort(self, frontend: bytes, request_ids: list[int] | None = None) -> None:
        """Forget these requests of a frontend, by default all."""
        for grammar, held in self._waiting.items():
            self._waiting[grammar] = [
                (whose, request)
                for whose, request in held
                if whose != frontend
                or (request_ids is not None and request.request_id not in request_ids)
            ]
