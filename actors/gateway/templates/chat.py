"""From a conversation to the prompt text that a model was trained to read.

Which template: the request's own, else the model's Jinja TEMPLATE, else the GGUF's.  Go templates, which
Ollama stores beside the GGUF's, are not run.

    renderer = ChatRenderer()
    await nursery.start(renderer.run)          # owns worker processes until it is cancelled
    text = await renderer.render_chat(entry, info, messages, tools=tools, think=True)
"""

from collections.abc import Mapping, Sequence
from typing import cast

import trio

from actors.errors import RequestError
from actors.gateway.library.entry import Entry
from actors.gateway.templates.jobs import RENDER_LIMIT_S, Job
from actors.gateway.templates.language import check_language, go_template_error
from actors.gateway.templates.pool import RenderPool
from actors.modelfile import is_go_template
from actors.protocol import ModelInfo

JsonObject = Mapping[str, object]
Turn = dict[str, object]


class ChatRenderer:
    """Renders templates in worker processes: one that loops for ever fails its request and nothing else."""

    def __init__(self, limit_s: float = RENDER_LIMIT_S) -> None:
        self._pool = RenderPool(limit_s)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the worker processes until cancelled; started() at once, the first is warm soon after."""
        await self._pool.run(task_status=task_status)

    async def check(self, template: str) -> None:
        """Raise RequestError, with the line, for what is no template; Unsupported for a Go one."""
        await self._pool.check(template)

    async def render_chat(
        self,
        entry: Entry,
        info: ModelInfo,
        messages: Sequence[JsonObject],
        *,
        tools: Sequence[JsonObject] | None = None,
        system: str | None = None,
        template: str | None = None,
        think: bool | str | None = None,
    ) -> str:
        """The prompt for a chat; `messages` are Ollama's JSON objects (role, content, tool_calls, ...).

        The model's SYSTEM (or `system` instead) and MESSAGEs are put in front; a last turn of the assistant
        is continued.  `think`: True, False, "low", "medium", "high"; None leaves it to the template.
        RequestError (400) when the template fails or there is none, Unsupported for only a Go template.
        """
        source = _choose(entry, info, template)
        if source is None:
            raise RequestError(
                f"{entry.name.display} has no chat template",
                where="template",
                mend="use /api/generate, or create a model from it with a Jinja TEMPLATE",
            )
        turns = _with_model_turns(entry, [_turn(message) for message in messages], system, use_messages=True)
        return await self._render(source, info, turns, tools, think)

    async def render_prompt(
        self,
        entry: Entry,
        info: ModelInfo,
        prompt: str,
        *,
        suffix: str = "",
        system: str | None = None,
        template: str | None = None,
        think: bool | str | None = None,
        use_messages: bool = True,
    ) -> str:
        """The prompt for one turn that is not raw; a model without any template gets it as it is.

        `use_messages` False leaves the model's MESSAGEs out (the request has a context).  A template
        made for `suffix` sees `prompt` and `suffix`, no messages; RequestError when no template is.
        """
        source = _choose(entry, info, template)
        if suffix:
            if source is None or "suffix" not in source:
                raise RequestError(f"{entry.name.full} does not support insert", where="template")
            variables = {
                "prompt": prompt,
                "suffix": suffix,
                "bos_token": info.bos_text,
                "eos_token": info.eos_text,
            }
            return _without_bos(await self._pool.render(Job(source, variables)), info)
        if source is None:
            head = entry.system if system is None else system
            return f"{head}\n\n{prompt}" if head else prompt
        turns = _with_model_turns(
            entry, [{"role": "user", "content": prompt}], system, use_messages=use_messages
        )
        return await self._render(source, info, turns, None, think)

    async def _render(
        self,
        source: str,
        info: ModelInfo,
        turns: list[Turn],
        tools: Sequence[JsonObject] | None,
        think: bool | str | None,
    ) -> str:
        begun = turns[-1] if turns and _is_begun_answer(turns[-1]) else None
        variables: Turn = {
            "messages": turns,
            # absent things are None, not undefined, as templates ask "is not none"
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": None,
            "add_generation_prompt": begun is None,
            **_specials(info),
            **_thinking(think),
        }
        text = await self._pool.render(Job(source, variables))
        if begun is not None:
            text = _until_end_of(text, str(begun["content"]))
        return _without_bos(text, info)


def served_template(entry: Entry, info: ModelInfo) -> str | None:
    """The Jinja text a model is served with, or None."""
    if entry.template is not None and not is_go_template(entry.template):
        return entry.template
    return info.chat_template or None


def _choose(entry: Entry, info: ModelInfo, template: str | None) -> str | None:
    """The template to use, checked; None when there is none in any language."""
    source = template or served_template(entry, info)
    if source is not None:
        check_language(source)
    elif entry.template is not None:
        raise go_template_error(entry.name.display)
    return source


def _turn(message: JsonObject) -> Turn:
    """One of Ollama's messages, as templates made for transformers expect it."""
    turn: Turn = {
        key: value
        for key, value in message.items()
        if key not in ("images", "tool_name", "thinking", "tool_calls") and value is not None
    }
    turn["role"] = str(message.get("role", "")).lower()
    turn.setdefault("content", "")
    if thinking := message.get("thinking"):
        turn["reasoning_content"] = turn["thinking"] = thinking  # qwen's name, gpt-oss's name
    if name := message.get("tool_name"):
        turn["name"] = name
    calls = message.get("tool_calls")
    if isinstance(calls, list | tuple) and calls:
        turn["tool_calls"] = [_tool_call(cast(JsonObject, call)) for call in cast(Sequence[object], calls)]
    return turn


def _tool_call(call: JsonObject) -> Turn:
    function = cast(JsonObject, call.get("function") or {})
    made: Turn = {
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": function.get("arguments", {})},
    }
    if "id" in call:
        made["id"] = call["id"]
    return made


def _with_model_turns(
    entry: Entry, turns: list[Turn], system: str | None, *, use_messages: bool
) -> list[Turn]:
    """The system turn first, then the model's own turns, then the request's.

    A system turn of the request wins over `system`, and that over the model's SYSTEM.
    """
    own: list[Turn] = [{"role": m.role, "content": m.content} for m in entry.messages] if use_messages else []
    if turns and turns[0]["role"] == "system":
        own = [turn for turn in own if turn["role"] != "system"]
        return [turns[0], *own, *turns[1:]]
    text = entry.system if system is None else system
    head: list[Turn] = [{"role": "system", "content": text}] if text else []
    return [*head, *own, *turns]


def _thinking(think: bool | str | None) -> Turn:
    """The names that templates have for the same switch."""
    if think is None:
        return {}
    if isinstance(think, str):
        return {"enable_thinking": True, "thinking": True, "reasoning_effort": think}
    return {"enable_thinking": think, "thinking": think}


def _specials(info: ModelInfo) -> dict[str, str]:
    return {"bos_token": info.bos_text, "eos_token": info.eos_text}


def _is_begun_answer(turn: Turn) -> bool:
    """Whether the last turn is the beginning of the answer, which the model shall continue."""
    return turn["role"] == "assistant" and bool(turn["content"]) and not turn.get("tool_calls")


def _until_end_of(text: str, content: str) -> str:
    """Cut what the template put after the last turn's content, such as an end-of-turn token."""
    at = text.rfind(content)
    if at >= 0:
        return text[: at + len(content)]
    stripped = content.strip()  # templates trim
    at = text.rfind(stripped)
    return text[: at + len(stripped)] if at >= 0 else text


def _without_bos(text: str, info: ModelInfo) -> str:
    """Take the leading BOS away where the tokenizer adds one itself: two of them spoil the first answer."""
    adds = info.metadata.get("tokenizer.ggml.add_bos_token")
    if adds is None:
        adds = info.metadata.get("tokenizer.ggml.model") == "llama"  # SentencePiece ones do by default
    return text.removeprefix(info.bos_text) if adds and info.bos_text else text
