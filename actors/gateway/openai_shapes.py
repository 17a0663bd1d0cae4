"""The JSON of OpenAI's API.  Fields with a default are left out while they have it."""

import secrets
from collections.abc import Sequence

from actors.gateway.shapes import FullLogprobShape, LogprobShape, Shape, TruncatedShape, logprob_shapes
from actors.protocol import Finished, Logprob

FINGERPRINT = "fp_ollama"  # what clients of Ollama's layer have always seen


def new_id(prefix: str) -> str:
    """An id that does not collide: "chatcmpl-" and 24 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(12)}"


class PromptDetailsShape(Shape, frozen=True):
    """Of the prompt's tokens, those that had been computed before."""

    cached_tokens: int


class UsageShape(Shape, frozen=True):
    """Tokens counted; details where there are any."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetailsShape | None = None


class ChatLogprobsShape(Shape, frozen=True):
    """Log-probabilities of a chat's answer."""

    content: tuple[LogprobShape, ...]


class TextLogprobsShape(Shape, frozen=True):
    """Log-probabilities of a completion; one item per token in each list."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class MessageShape(Shape, frozen=True, kw_only=True):
    """The assistant's turn."""

    role: str
    content: str
    reasoning: str = ""


class DeltaShape(Shape, frozen=True, kw_only=True):
    """What a chunk adds to the turn; all absent in the chunk that ends it."""

    role: str = ""
    content: str | None = None
    reasoning: str = ""


class ChoiceShape(Shape, frozen=True, kw_only=True):
    """A whole chat answer."""

    index: int
    message: MessageShape
    finish_reason: str
    logprobs: ChatLogprobsShape | None = None


class ChunkChoiceShape(Shape, frozen=True, kw_only=True):
    """A part of one.  `finish_reason` is null until the end."""

    index: int
    delta: DeltaShape
    finish_reason: str | None
    logprobs: ChatLogprobsShape | None = None


class TextChoiceShape(Shape, frozen=True, kw_only=True):
    """A completion, or a part of one."""

    text: str
    index: int
    finish_reason: str | None
    logprobs: TextLogprobsShape | None = None


class AnswerShape(Shape, frozen=True, kw_only=True):
    """The envelope of all of them."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChoiceShape | ChunkChoiceShape | TextChoiceShape]
    usage: UsageShape | None = None
    truncated: TruncatedShape | None = None


class ModelShape(Shape, frozen=True, kw_only=True):
    """A model of the library."""

    id: str
    object: str
    created: int
    owned_by: str


def usage_shape(finished: Finished) -> UsageShape:
    """What was counted."""
    n_prompt, n_predicted = finished.prompt_tokens, finished.predicted_tokens
    details = PromptDetailsShape(finished.cached_tokens) if finished.cached_tokens else None
    return UsageShape(n_prompt, n_predicted, n_prompt + n_predicted, details)


def chat_logprobs(entries: Sequence[Logprob]) -> ChatLogprobsShape | None:
    """As /v1/chat/completions shows them; None when there are none."""
    return ChatLogprobsShape(logprob_shapes(entries, FullLogprobShape)) if entries else None


def text_logprobs(entries: Sequence[Logprob], n_before: int) -> TextLogprobsShape | None:
    """As /v1/completions shows them; `n_before`: characters of the answer before these tokens."""
    if not entries:
        return None
    shapes = logprob_shapes(entries)
    offsets: list[int] = []
    for shape in shapes:
        offsets.append(n_before)
        n_before += len(shape.token)
    return TextLogprobsShape(
        tokens=tuple(shape.token for shape in shapes),
        token_logprobs=tuple(shape.logprob for shape in shapes),
        top_logprobs=tuple({top.token: top.logprob for top in shape.top_logprobs} for shape in shapes),
        text_offset=tuple(offsets),
    )
