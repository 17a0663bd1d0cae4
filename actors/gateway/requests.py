"""What /api/generate and /api/chat are asked, read from JSON and checked as far as that needs no model."""

from dataclasses import dataclass
from typing import cast

from actors.errors import RequestError
from actors.gateway.fields import Fields, JsonObject
from actors.gateway.options import read_keep_alive

THINK_LEVELS = ("low", "medium", "high", "max")
MAX_TOP_LOGPROBS = 20
NO_FORMAT = "structured output (format) is not supported yet"

Think = bool | str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What both have in common."""

    model: str
    is_stream: bool
    options: JsonObject
    keep_alive_s: float | None
    think: Think
    truncate: bool
    shift: bool
    n_logprobs: int  # -1: none
    is_debug: bool  # show the prompt, do not generate


@dataclass(frozen=True, slots=True)
class GenerateAsked(Asked):
    """A prompt to go on from."""

    prompt: str
    suffix: str
    system: str | None
    template: str | None
    context: tuple[int, ...]
    is_raw: bool


@dataclass(frozen=True, slots=True)
class ChatAsked(Asked):
    """A conversation to go on with; `messages` are Ollama's JSON objects, checked."""

    messages: tuple[JsonObject, ...]
    tools: tuple[JsonObject, ...]


def read_generate(fields: Fields) -> GenerateAsked:
    """Read a GenerateRequest; RequestError names what is wrong."""
    _refuse_images(fields)
    is_raw = fields.truth("raw")
    system, template = fields.text("system"), fields.text("template")
    context = _read_context(fields)
    if is_raw and (system or template or context):
        raise RequestError("raw mode does not support template, system, or context", where="body.raw")
    return GenerateAsked(
        *_common(fields),
        prompt=fields.text("prompt"),
        suffix=fields.text("suffix"),
        system=system or None,
        template=template or None,
        context=context,
        is_raw=is_raw,
    )


def read_chat(fields: Fields) -> ChatAsked:
    """Read a ChatRequest; RequestError names what is wrong."""
    return ChatAsked(
        *_common(fields),
        messages=tuple(_read_message(message) for message in fields.each("messages", "Message")),
        tools=tuple(_read_tool(tool) for tool in fields.each("tools", "Tool")),
    )


def _common(fields: Fields) -> tuple[str, bool, JsonObject, float | None, Think, bool, bool, int, bool]:
    n_logprobs = read_logprobs(fields)
    _refuse_format(fields)
    return (
        fields.text("model") or fields.text("name"),
        fields.truth("stream", default=True),
        fields.table("options") or {},
        read_keep_alive(fields),
        _read_think(fields),
        fields.truth("truncate", default=True),
        fields.truth("shift", default=True),
        n_logprobs,
        fields.truth("_debug_render_only"),
    )


def read_logprobs(fields: Fields) -> int:
    """How many candidates are asked for beside the chosen token; -1: no log-probabilities at all."""
    n_top = fields.whole("top_logprobs") or 0
    if not 0 <= n_top <= MAX_TOP_LOGPROBS:
        raise RequestError(
            f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", where="body.top_logprobs"
        )
    return n_top if fields.truth("logprobs") else -1


def _read_think(fields: Fields) -> Think:
    value = fields.raw("think")
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str) or value not in THINK_LEVELS:
        raise RequestError(
            f'invalid think value: {value!r} (must be "high", "medium", "low", "max", true, or false)',
            where="body.think",
        )
    return value


def _refuse_format(fields: Fields) -> None:
    value = fields.raw("format")
    if value is None or value == "":
        return
    if value == "json" or isinstance(value, dict):
        raise RequestError(
            NO_FORMAT, where="body.format", mend="leave out format, and ask for JSON in the prompt"
        )
    raise RequestError(
        f'invalid format: {str(value)[:80]!r}; expected "json" or a valid JSON Schema object',
        where="body.format",
    )


def _refuse_images(fields: Fields) -> None:
    if fields.texts("images"):
        raise RequestError("this model does not support images", where=f"{fields.path or 'body'}.images")


def _read_context(fields: Fields) -> tuple[int, ...]:
    tokens = fields.items("context", "[]int")
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int):
            fields.refuse("context", token, "int")
        if not 0 <= token < 2**31:
            raise RequestError(f"context has {token}, which is not a token", where="body.context")
    return cast("tuple[int, ...]", tuple(tokens))


def _read_message(fields: Fields) -> JsonObject:
    _refuse_images(fields)
    message: JsonObject = {"role": fields.text("role").lower(), "content": fields.text("content")}
    for name in ("thinking", "tool_name", "tool_call_id"):
        if text := fields.text(name):
            message[name] = text
    if calls := fields.each("tool_calls", "ToolCall"):
        message["tool_calls"] = [_read_call(call) for call in calls]
    return message


def _read_call(fields: Fields) -> JsonObject:
    function = fields.fields("function", "ToolCallFunction") or Fields("ToolCallFunction", {})
    call: JsonObject = {
        "function": {"name": function.text("name"), "arguments": function.table("arguments") or {}}
    }
    if call_id := fields.text("id"):
        call["id"] = call_id
    return call


def _read_tool(fields: Fields) -> JsonObject:
    function = fields.table("function", "ToolFunction")
    if function is None:
        raise RequestError("a tool has no function", where="body.tools")
    return {"type": fields.text("type", "function"), "function": function}
