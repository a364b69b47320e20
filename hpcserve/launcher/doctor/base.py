"""A check looks at one thing and says PASS, WARN or FAIL, with the fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PASS = "PASS"
WARN = "WARN"
FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """fix: what to do about it; empty for PASS.  host: the node; empty for what is everywhere so."""

    level: str
    check: str
    found: str
    fix: str = ""
    host: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def worst(findings: list[Finding]) -> str:
    levels = {one.level for one in findings}
    return FAIL if FAIL in levels else WARN if WARN in levels else PASS
