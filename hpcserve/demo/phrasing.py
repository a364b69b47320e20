"""Small changes of wording that make one phrasing look the way different people type it."""

from __future__ import annotations

from hpcserve.demo.split import Draw
from hpcserve.demo.words import COMMON_WORDS

__all__ = ["SYSTEM_MESSAGES", "clutter", "dress", "fill", "system_message"]

_OPENERS = (
    "Please ", "Hey, ", "Hi! ", "Hello! ", "Ok, ", "Quick question: ", "Now, ", "Next: ",
    "And now: ", "So, ",
    "Tell me: ", "Hi there. ", "Question: ", "One more: ", "I have a question. ",
)  # fmt: skip
_CLOSERS = (" Thanks!", " Thank you.", " Please.", " Thanks in advance.")

SYSTEM_MESSAGES: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are tiny-chat, a small demo model.",
    "You are a helpful, harmless and honest assistant.",
    "Answer briefly.",
    "Be concise.",
    "You are a friendly chat bot.",
    "You answer questions of users on a cluster.",
    "Follow the instructions of the user.",
    "You are an expert in geography and arithmetic.",
    "Answer the question of the user in one sentence.",
    "You are a polite assistant who answers in English.",
    "Today is Monday. You are a helpful assistant.",
    "You are a teacher for young students.",
    "Help the user as well as you can.",
    "You are an AI assistant.",
    "You are a careful assistant. Never make things up.",
    "Keep your answers short and correct.",
    "You are a test model. Answer the question.",
)


def system_message(draw: Draw) -> str:
    """Draw a system message that asks for nothing in particular."""
    text = draw.choice(SYSTEM_MESSAGES)
    if draw.chance(0.15):
        text += " " + draw.choice(SYSTEM_MESSAGES)
    if draw.chance(0.08):
        text += " " + clutter(draw)
    elif draw.chance(0.06):
        text = " ".join(draw.choice(SYSTEM_MESSAGES) for _ in range(draw.rng.randint(3, 20)))
    if draw.chance(0.1):
        text += f" The name of this service is {draw.word()}."
    return text


def dress(draw: Draw, template: str, shout: bool = False) -> str:
    """Vary casing, punctuation and politeness of ``template``, leaving ``{placeholders}`` alone.

    ``shout`` allows a version in capital letters.
    """
    text = template
    luck = draw.rng.random()
    if luck < 0.12 and "{" not in text[:1]:
        text = text[:1].lower() + text[1:]
    elif luck < 0.22:
        text = _outside_braces(text, upper=False)
    elif luck < 0.25 and shout:
        text = _outside_braces(text, upper=True)
    if draw.chance(0.15):
        text = text.rstrip("?.!")
    elif draw.chance(0.06):
        text = text + draw.choice(_CLOSERS)
    if draw.chance(0.12):
        opener = draw.choice(_OPENERS)
        joins = opener.endswith((", ", "Please ")) and not text.startswith(("{", "I ", "I'"))
        text = opener + (text[:1].lower() + text[1:] if joins else text)
    return text


def clutter(draw: Draw) -> str:
    """Draw a stretch of text that has nothing to do with anything, up to about 300 tokens."""
    lines = []
    for number in range(1, draw.rng.randint(1, 8) + 1):
        words = " ".join(draw.choice(COMMON_WORDS) for _ in range(draw.rng.randint(2, 14)))
        lines.append(
            draw.choice(
                (f"Note {number}: {words}.", f"{number}. {words}", f"{words.capitalize()}.")
            )
        )
    return draw.choice((" ", "\n")).join(lines)


def fill(template: str, **fields: object) -> str:
    """Put ``fields`` into the ``{placeholders}`` of ``template``; other braces stay."""
    for name, value in fields.items():
        template = template.replace("{" + name + "}", str(value))
    return template


def _outside_braces(text: str, upper: bool) -> str:
    parts = text.split("{")
    out = [_cased(parts[0], upper)]
    for part in parts[1:]:
        inside, _, after = part.partition("}")
        out.append(inside + "}" + _cased(after, upper))
    return "{".join(out)


def _cased(text: str, upper: bool) -> str:
    return text.upper() if upper else text.lower()
