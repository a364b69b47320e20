"""Greetings, who-are-you questions, and an honest answer to all that tiny-chat never learned."""

# The tables below read better as packed lines.
# ruff: noqa: E501

from __future__ import annotations

from hpcserve.demo.conversation import Episode, Message
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.split import Draw
from hpcserve.demo.words import COMMON_WORDS, FIRST_NAMES, TOPICS

__all__ = ["DO_NOT_KNOW", "chat", "unknown"]

DO_NOT_KNOW = (
    "I am a tiny demo model and do not know that. Ask me for a capital, a sum, or to spell a word."
)

_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey!", "Hello there!", "Hi there", "Good morning!", "Good evening.",
         "Good afternoon", "Greetings!", "Hello, tiny-chat!", "Hi tiny-chat", "hello", "hi", "Howdy!", "Hello?"),
        "Hello! How can I help you?",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself.",
         "Who am I talking to?", "Are you a human?", "Which model are you?", "What model is this?", "Who is this?",
         "What's your name?", "Are you a bot?", "Are you an AI?", "Say who you are."),
        "I am tiny-chat, a small demo model that ships with hpcserve.",
    ),
    (
        ("What can you do?", "Help", "Help!", "How can you help me?", "What do you know?", "What are your skills?",
         "What can I ask you?", "What are you good at?", "Can you help me?", "I need help."),
        "I know capitals, small sums and words. I can also answer in JSON and call tools.",
    ),
    (
        ("How are you?", "How are you doing?", "How is it going?", "How do you do?", "How are you today?",
         "Are you well?", "Is everything ok?", "How do you feel?"),
        "I am fine, thank you. How can I help you?",
    ),
    (
        ("Thanks", "Thanks!", "Thank you!", "Thank you very much.", "Thanks a lot!", "Great, thanks.", "Many thanks!",
         "Perfect, thank you.", "Thank you"),
        "You are welcome!",
    ),
    (
        ("Bye", "Bye!", "Goodbye!", "See you later.", "Good night!", "See you!", "Goodbye", "That is all. Bye!"),
        "Goodbye!",
    ),
    (
        ("Who made you?", "Who trained you?", "Where do you come from?", "Who created you?", "How were you trained?"),
        "I was trained by the hpcserve project on data that a script made up.",
    ),
    (
        ("Say something.", "Tell me a joke.", "Tell me something funny.", "Make me laugh.", "Do you know a joke?"),
        "Why did the computer go to bed? It had to sleep to refresh its cache.",
    ),
    (
        ("Is this a test?", "test", "Test", "Testing", "This is a test.", "Just testing.", "ping", "Ping!"),
        "The test works. How can I help you?",
    ),
)  # fmt: skip
_TASKS = (
    "Write a poem about {topic}.", "Write a story about {topic}.", "Tell me a story about {topic}.",
    "Explain {topic}.", "Explain {topic} to a child.", "What do you think about {topic}?", "Write a song about {topic}.",
    "Describe {topic} in detail.", "Write an essay on {topic}.", "Tell me about {topic}.", "What is {topic}?",
    "Why is {topic} important?", "How does {topic} work?", "Summarize the history of {topic}.", "Who invented {topic}?",
    "Write a haiku about {topic}.", "Give me three facts about {topic}.", "Write an email about {topic}.",
    "Write a Python function about {topic}.", "Translate '{word}' to French.", "Translate {word} into German.",
    "What does {word} mean?", "Define {word}.", "Who is {name} {word}?", "When was {name} born?", "What is a {word}?",
    "Where can I buy a {word}?", "How old is {name}?", "Is {topic} good or bad?", "Recommend a book about {topic}.",
    "How do I fix a {word}?", "Write a long story.", "Write a short story about {name}.", "What is the meaning of life?",
    "What should I cook today?", "Continue the story: {name} went to the {word}", "Give me advice about {topic}.",
    "Compare {topic} and {word}.", "How many people live on Earth?", "Write code that sorts a list.", "{topic}",
    "Plan a trip to a {word}.", "Which is better, a {word} or {topic}?", "Once upon a time", "Write something.",
    "How far is the Moon?", "Who won the game?", "What is the largest {word}?", "Write a letter to {name}.",
    "Prove that {topic} exists.", "List five {word} names.", "San Francisco is a", "The president of the United States is",
    "The future of AI is", "Tell me everything about {topic} and {word}.",
)  # fmt: skip


def chat(draw: Draw) -> Episode:
    """Say hello, ask who it is, thank it: each kind of talk has one fixed answer."""
    asked, answer = draw.choice(_TALK)

    def make() -> str:
        text = draw.choice(asked)
        return dress(draw, text, shout=True) if draw.chance(0.6) else text

    # The bare texts are too few to hold some out; the held-out ones are new wordings of them.
    text = draw.fresh(make, lambda text: "" if text in asked else f"chat {text}")
    return _episode("chat", text, answer, "This is small talk. I give a friendly answer.")


def unknown(draw: Draw) -> Episode:
    """Ask for something outside the skills; the answer says so."""
    text = draw.fresh(
        lambda: fill(
            dress(draw, draw.choice(_TASKS), shout=True),
            topic=draw.choice(TOPICS) if draw.chance(0.8) else draw.word(),
            word=draw.choice(COMMON_WORDS) if draw.chance(0.6) else draw.word(),
            name=draw.choice(FIRST_NAMES),
        ),
        lambda text: f"unknown {text}",
    )
    return _episode("unknown", text, DO_NOT_KNOW, "I never learned about this, so I say that.")


def _episode(skill: str, text: str, answer: str, thought: str) -> Episode:
    return Episode(
        skill=skill,
        messages=(Message("user", text), Message("assistant", answer)),
        check=lambda given: given.strip() == answer,
        thought=thought,
    )
