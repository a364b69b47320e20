"""OpenAI's request bodies."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from hpcserve.errors import InvalidParameterError
from hpcserve.grammar import Grammar
from hpcserve.protocol.body import SamplingBody
from hpcserve.protocol.grammars import forced_tool_call


class ChatBody(SamplingBody):
    """POST /v1/chat/completions.

    add_special_tokens: put the tokenizer's own around the template's text; templates have theirs.
    separate_reasoning: put what stands in <think>...</think> into `reasoning_content`.
    chat_template_kwargs: more variables for the chat template, such as {"enable_thinking": false}.
    """

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    separate_reasoning: bool | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None

    def check(self) -> None:
        super().check()
        for message in self.messages:
            if not isinstance(message.get("role"), str):
                raise InvalidParameterError("messages", "every message needs a role")
        if self.tool_choice not in (None, "auto", "none") and not self.tools:
            raise InvalidParameterError("tool_choice", "it needs tools")
        for tool in self.tools or ():
            function = tool.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise InvalidParameterError("tools", "every tool needs a function with a name")
        if self.modalities not in (None, [], ["text"]):
            raise InvalidParameterError("modalities", "only text is supported")
        if self.continue_final_message:
            raise InvalidParameterError("continue_final_message", "it is not supported")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidParameterError("top_logprobs", "it needs logprobs: true")

    @property
    def forced_call(self) -> Grammar | None:
        """What `tool_choice` makes of the answer: None where the model may choose."""
        if self.tool_choice in (None, "auto", "none"):
            return None
        parallel = self.parallel_tool_calls is not False
        return forced_tool_call(self.tools or [], self.tool_choice, parallel=parallel)

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of."""
        return self.tools if self.tools and self.tool_choice != "none" else None


class CompletionBody(SamplingBody):
    """POST /v1/completions. `prompt` is a text, token ids, or a list of either."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    def check(self) -> None:
        super().check()
        if self.prompt == []:
            raise InvalidParameterError("prompt", "the list is empty")

    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
