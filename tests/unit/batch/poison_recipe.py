"""A preparer for the tests of processes, which can import it: some prompts kill who prepares them."""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcserve.batch.engine import PreparedRequest
from hpcserve.errors import InvalidParameterError, ModelNotFoundError


class PoisonPreparer:
    """Gives the prompt back, and says which process it was in."""

    def prepare(self, url: str, body: dict[str, Any]) -> PreparedRequest:
        text = body["prompt"]
        if "kill" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "refuse" in text:
            raise InvalidParameterError("prompt", "refused")
        if "defect" in text:
            raise AssertionError(f"a defect in process {os.getpid()}")
        return PreparedRequest(len(text), (text, os.getpid()), text[:8].encode())


@dataclass(frozen=True)
class PoisonRecipe:
    broken: bool = False

    def make(self) -> PoisonPreparer:
        if self.broken:
            raise ModelNotFoundError("no tokenizer here")
        return PoisonPreparer()


@dataclass(frozen=True)
class EchoRecipe:
    """The preparer of the stand-in engine.  path: of the file that it stands in."""

    path: Path

    def make(self) -> Any:
        spec = importlib.util.spec_from_file_location("engines", self.path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.EchoEngine()
