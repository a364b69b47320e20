"""Remembering the user's name over other turns."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.demo.conversation import Check, Episode, Message
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.split import Draw

__all__ = ["Acquaintance", "meet", "name_unknown"]

_TELL = (
    "My name is {name}.",
    "I am {name}.",
    "I'm {name}.",
    "Hello, my name is {name}.",
    "Hi, I am {name}!",
    "Call me {name}.",
    "You can call me {name}.",
    "My name is {name}. Please remember it.",
    "Remember that my name is {name}.",
    "Hey, {name} here.",
    "This is {name}.",
    "People call me {name}.",
)
_ASK = (
    "What is my name?",
    "What's my name?",
    "Do you remember my name?",
    "Who am I?",
    "What was my name?",
    "Tell me my name.",
    "What did I say my name was?",
    "Can you tell me my name?",
    "Do you know my name?",
    "How am I called?",
    "What name did I give you?",
    "Say my name.",
)
_SYSTEM = ("The name of the user is {name}.", "The user is called {name}.", "You talk to {name}.")


@dataclass(frozen=True)
class Acquaintance:
    """How the user's name is told, and the later question for it."""

    name: str
    told: tuple[Message, ...]
    system: str
    asked: tuple[Message, ...]
    check: Check
    thought: str


def meet(draw: Draw) -> Acquaintance:
    """Draw a name with a way to tell it and a way to ask for it."""
    name = draw.name()
    typed = name.lower() if draw.chance(0.1) else name
    return Acquaintance(
        name=name,
        told=(
            Message("user", fill(dress(draw, draw.choice(_TELL)), name=typed)),
            Message("assistant", f"Nice to meet you, {name}!"),
        ),
        system=fill(draw.choice(_SYSTEM), name=name),
        asked=(
            Message("user", dress(draw, draw.choice(_ASK))),
            Message("assistant", f"Your name is {name}."),
        ),
        check=lambda text: f"{name}." in text,
        thought=f"The user told me the name {name}.",
    )


def name_unknown(draw: Draw) -> Episode:
    """Ask for a name that nobody told."""
    answer = "You have not told me your name yet."
    return Episode(
        skill="chat",
        messages=(Message("user", dress(draw, draw.choice(_ASK))), Message("assistant", answer)),
        check=lambda text: text.strip() == answer,
        thought="The user has not told me a name.",
    )
