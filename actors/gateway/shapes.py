"""The JSON that goes out, by API.  Fields with a default are left out while they have it (Go's omitempty)."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from actors.gateway.completion import LeftOut
from actors.protocol import Logprob, TokenLogprob

S_TO_NS = 1_000_000_000


class Shape(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of everything that is sent as JSON."""


def now_text() -> str:
    """The time, RFC 3339 with sub-seconds, UTC."""
    return time_text(datetime.now(UTC))


def time_text(moment: datetime) -> str:
    """A moment, RFC 3339 with sub-seconds, UTC."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def duration_ns(seconds: float) -> int:
    """Seconds as whole nanoseconds."""
    return round(seconds * S_TO_NS)


# --- Log-probabilities, the same in both APIs -------------------------------------------------------------


class TopLogprobShape(Shape, frozen=True):
    """One candidate token."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class LogprobShape(Shape, frozen=True):
    """The token that was chosen, and the most likely ones."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprobShape, ...] = ()


class FullLogprobShape(LogprobShape, frozen=True, omit_defaults=False):
    """The same for OpenAI, whose clients expect the list of candidates also when it is empty."""


def logprob_shapes(
    entries: Sequence[Logprob], kind: type[LogprobShape] = LogprobShape
) -> tuple[LogprobShape, ...]:
    """As both APIs show them.  The bytes are the token's own, also where they are no text."""
    return tuple(
        kind(
            *_token(entry.chosen),
            tuple(TopLogprobShape(*_token(candidate)) for candidate in entry.top),
        )
        for entry in entries
    )


def _token(entry: TokenLogprob) -> tuple[str, float, tuple[int, ...]]:
    return entry.piece.decode("utf-8", "replace"), entry.logprob, tuple(entry.piece)


# --- What was left out, the same in both APIs -------------------------------------------------------------


class TruncatedShape(Shape, frozen=True, omit_defaults=False):
    """What of a prompt did not fit into the context.  Neither API has it; their clients pass over it."""

    dropped_tokens: int
    dropped_messages: int


def truncated_shape(left_out: LeftOut) -> TruncatedShape | None:
    """None when nothing was left out."""
    is_whole = not (left_out.n_tokens or left_out.n_messages)
    return None if is_whole else TruncatedShape(left_out.n_tokens, left_out.n_messages)


# --- Ollama: answers of a model --------------------------------------------------------------------------


class AnswerShape(Shape, frozen=True, kw_only=True):
    """What generate and chat have in common; counts and durations (ns) come with the last part."""

    model: str
    created_at: str
    done: bool
    done_reason: str = ""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_cached_count: int = 0  # of them, those that had been computed before
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    truncated: TruncatedShape | None = None
    logprobs: tuple[LogprobShape, ...] = ()


class DebugShape(Shape, frozen=True):
    """What `_debug_render_only` shows."""

    rendered_template: str
    image_count: int = 0


class GenerateShape(AnswerShape, frozen=True, kw_only=True):
    """A part of an answer of /api/generate."""

    response: str
    thinking: str = ""
    context: tuple[int, ...] = ()
    debug_info: DebugShape | None = msgspec.field(name="_debug_info", default=None)


class MessageShape(Shape, frozen=True, kw_only=True):
    """The assistant's turn, or a part of it."""

    role: str
    content: str
    thinking: str = ""


class ChatShape(AnswerShape, frozen=True, kw_only=True):
    """A part of an answer of /api/chat."""

    message: MessageShape
    debug_info: DebugShape | None = msgspec.field(name="_debug_info", default=None)


# --- Ollama: models --------------------------------------------------------------------------------------


class DetailsShape(Shape, frozen=True, kw_only=True):
    """What kind of model it is."""

    parent_model: str
    format: str
    family: str
    families: tuple[str, ...] | None
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class TagShape(Shape, frozen=True):
    """A model of the library."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: DetailsShape
    capabilities: tuple[str, ...] = ()


class RunningShape(Shape, frozen=True):
    """A model in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: DetailsShape
    expires_at: str
    size_vram: int
    context_length: int
    status: str = ""  # while it loads: "reading 37 %"


class WaitingShape(Shape, frozen=True):
    """A model that requests wait for."""

    name: str
    model: str
    status: str  # "evicting llama3.2:1b", "reading 37 %", ...
    requests: int
    requests_before: int
    waited: int  # nanoseconds, as all durations


class TensorShape(Shape, frozen=True):
    """One tensor, as `show` lists it."""

    name: str
    type: str
    shape: tuple[int, ...]


class TurnShape(Shape, frozen=True):
    """A turn that a model brings along."""

    role: str
    content: str


class ShowShape(Shape, frozen=True, kw_only=True):
    """Everything known of a model."""

    license: str = ""
    modelfile: str
    parameters: str
    template: str
    system: str
    details: DetailsShape
    messages: tuple[TurnShape, ...] = ()
    model_info: dict[str, object]
    tensors: tuple[TensorShape, ...] = ()
    capabilities: tuple[str, ...]
    modified_at: str
