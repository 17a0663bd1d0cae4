"""What OpenAI's clients ask, turned into what Ollama's ask.

Fields that would change the answer and are not implemented are refused by name; fields without any bearing on
it (`user`, `metadata`, `store`...) are ignored.
"""

from dataclasses import dataclass
from typing import cast

from actors.errors import RequestError
from actors.gateway.fields import Fields, JsonObject
from actors.gateway.requests import MAX_TOP_LOGPROBS, ChatAsked, GenerateAsked, Think, read_logprobs

DEFAULTS = {"temperature": 1.0, "top_p": 1.0}  # OpenAI's own
SAME_NAMES = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "min_p",
    "typical_p",
    "repeat_penalty",
)
EFFORTS: dict[str, Think] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
NO_FORMAT = "structured output (response_format) is not supported yet"
TEXT_PARTS = ("text", "input_text")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the answer is to be sent."""

    model: str
    is_stream: bool
    has_usage: bool  # a last chunk with counts
    n_logprobs: int


def read_chat_completion(fields: Fields) -> tuple[Wanted, ChatAsked]:
    """POST /v1/chat/completions; RequestError names what is wrong."""
    _refuse(fields, "n", (None, 1))
    _refuse(fields, "logit_bias", (None, {}))
    for name in ("functions", "function_call", "audio", "prediction", "web_search_options"):
        _refuse(fields, name, (None, [], {}))
    _refuse(fields, "modalities", (None, ["text"]))
    if fields.raw("tool_choice") not in (None, "auto", "none"):
        raise RequestError("tool_choice other than auto or none is not supported", where="body.tool_choice")
    _refuse_format(fields)
    messages = tuple(_read_message(message) for message in fields.each("messages", "Message"))
    if not messages:
        raise RequestError(
            "[] is too short - 'messages'", where="body.messages", mend="send one message at least"
        )
    n_logprobs = read_logprobs(fields)
    tools: tuple[JsonObject, ...] = ()
    if fields.raw("tool_choice") != "none":
        tools = tuple(dict(tool.values) for tool in fields.each("tools", "Tool"))
    asked = ChatAsked(
        model=fields.text("model"),
        is_stream=fields.truth("stream"),
        options=_options(fields),
        keep_alive_s=None,
        think=_effort(fields),
        truncate=True,
        shift=True,
        n_logprobs=n_logprobs,
        is_debug=False,
        messages=messages,
        tools=tools,
    )
    return _wanted(fields, n_logprobs), asked


def read_completion(fields: Fields) -> tuple[Wanted, GenerateAsked]:
    """POST /v1/completions; RequestError names what is wrong.

    A text prompt goes through the model's template, as Ollama does it; token ids are taken as they are.
    """
    _refuse(fields, "n", (None, 1))
    _refuse(fields, "best_of", (None, 0, 1))
    _refuse(fields, "logit_bias", (None, {}))
    _refuse(fields, "echo", (None, False))
    n_logprobs = _legacy_logprobs(fields)
    text, tokens = _prompt(fields)
    asked = GenerateAsked(
        model=fields.text("model"),
        is_stream=fields.truth("stream"),
        options=_options(fields),
        keep_alive_s=None,
        think=None,
        truncate=True,
        shift=True,
        n_logprobs=n_logprobs,
        is_debug=False,
        prompt=text,
        suffix=fields.text("suffix"),
        system=None,
        template=None,
        context=tokens,
        is_raw=bool(tokens),
    )
    return _wanted(fields, n_logprobs), asked


def _wanted(fields: Fields, n_logprobs: int) -> Wanted:
    stream_options = fields.fields("stream_options", "StreamOptions")
    return Wanted(
        model=fields.text("model"),
        is_stream=fields.truth("stream"),
        has_usage=stream_options is not None and stream_options.truth("include_usage"),
        n_logprobs=n_logprobs,
    )


def _options(fields: Fields) -> JsonObject:
    options: JsonObject = {name: fields.number(name) for name in SAME_NAMES}
    limit = fields.whole("max_completion_tokens")
    if limit is None:
        limit = fields.whole("max_tokens")
    if limit is not None and limit < 1 and limit != -1:  # -1: without limit, as many local servers have it
        raise RequestError("max_tokens must be 1 at least", where="body.max_tokens")
    options["num_predict"] = limit
    options["seed"] = fields.whole("seed")
    options["top_k"] = fields.whole("top_k")
    options["ignore_eos"] = None if fields.raw("ignore_eos") is None else fields.truth("ignore_eos")
    stop = fields.raw("stop")
    options["stop"] = [stop] if isinstance(stop, str) else list(fields.texts("stop")) or None
    return options


def _effort(fields: Fields) -> Think:
    reasoning = fields.fields("reasoning", "Reasoning")
    effort = fields.text("reasoning_effort") or (reasoning.text("effort") if reasoning is not None else "")
    if not effort:
        return None
    if effort not in EFFORTS:
        raise RequestError(
            f"invalid reasoning value: {effort[:40]!r} (must be one of {', '.join(EFFORTS)})",
            where="body.reasoning_effort",
        )
    return EFFORTS[effort]


def _legacy_logprobs(fields: Fields) -> int:
    value = fields.raw("logprobs")
    if value is None or isinstance(value, bool):
        return 0 if value else -1
    n_top = fields.whole("logprobs") or 0
    if not 0 <= n_top <= MAX_TOP_LOGPROBS:
        raise RequestError(f"logprobs must be between 0 and {MAX_TOP_LOGPROBS}", where="body.logprobs")
    return n_top


def _prompt(fields: Fields) -> tuple[str, tuple[int, ...]]:
    value = fields.raw("prompt")
    if isinstance(value, list):
        items = cast("list[object]", value)
        if len(items) == 1 and isinstance(first := items[0], str | list):  # a batch of one
            return _prompt(Fields(fields.struct, {"prompt": cast("object", first)}))
        if items and all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31 for item in items
        ):
            return "", cast("tuple[int, ...]", tuple(items))
        raise RequestError(
            "prompt must be one string or one array of token ids",
            where="body.prompt",
            mend="send one request per prompt",
        )
    return fields.text("prompt"), ()


def _read_message(fields: Fields) -> JsonObject:
    role = fields.text("role").lower()
    message: JsonObject = {
        "role": "system" if role == "developer" else role,
        "content": _content(fields),
    }
    if thinking := fields.text("reasoning") or fields.text("reasoning_content"):
        message["thinking"] = thinking
    for ours, theirs in (("tool_name", "name"), ("tool_call_id", "tool_call_id")):
        if text := fields.text(theirs):
            message[ours] = text
    if fields.each("tool_calls", "ToolCall"):
        raise RequestError("tool calls in messages are not supported yet", where="body.messages.tool_calls")
    return message


def _content(fields: Fields) -> str:
    """A string, or the texts of its parts, a line each."""
    content = fields.raw("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(
            f"invalid message content type: {type(content).__name__}", where="body.messages.content"
        )
    texts: list[str] = []
    for part in fields.each("content", "ContentPart"):
        kind = part.text("type")
        if kind not in TEXT_PARTS:
            what = "images" if "image" in kind else f"content of type {kind[:40]!r}"
            raise RequestError(f"this model does not support {what}", where="body.messages.content")
        texts.append(part.text("text"))
    return "\n".join(texts)


def _refuse_format(fields: Fields) -> None:
    wanted = fields.fields("response_format", "ResponseFormat")
    if wanted is not None and wanted.text("type", "text") != "text":
        raise RequestError(NO_FORMAT, where="body.response_format")


def _refuse(fields: Fields, name: str, harmless: tuple[object, ...]) -> None:
    if fields.raw(name) not in harmless:
        raise RequestError(f"{name} is not supported here", where=f"body.{name}", mend=f"leave out {name}")
