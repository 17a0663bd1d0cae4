"""OpenAI's /v1/models, /v1/chat/completions and /v1/completions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.errors import ModelNotFound, RequestError
from actors.gateway.completion import Outcome
from actors.gateway.dialect import OPENAI
from actors.gateway.exchange import Exchange
from actors.gateway.generation import DONE_REASONS, Generator, Piece, Prepared, joined
from actors.gateway.library.entry import Entry
from actors.gateway.library.store import Library
from actors.gateway.openai_requests import DEFAULTS, Wanted, read_chat_completion, read_completion
from actors.gateway.openai_shapes import (
    FINGERPRINT,
    AnswerShape,
    ChoiceShape,
    ChunkChoiceShape,
    DeltaShape,
    MessageShape,
    ModelShape,
    TextChoiceShape,
    chat_logprobs,
    new_id,
    text_logprobs,
    usage_shape,
)
from actors.gateway.shapes import truncated_shape

Choices = Sequence[ChoiceShape | ChunkChoiceShape | TextChoiceShape]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer share; `created` is one for the whole stream."""

    id: str
    kind: str
    model: str
    created: int

    def around(
        self, choices: Choices, outcome: Outcome | None = None, *, has_usage: bool = True
    ) -> AnswerShape:
        """An answer, or a part of one; when it has ended with counts, and with what was left out."""
        return AnswerShape(
            id=self.id,
            object=self.kind,
            created=self.created,
            model=self.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=usage_shape(outcome.finished) if outcome is not None and has_usage else None,
            truncated=truncated_shape(outcome.left_out) if outcome is not None else None,
        )


class OpenAIAnswers:
    """The handlers."""

    def __init__(self, generator: Generator, library: Library) -> None:
        self._generator = generator
        self._library = library

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        entries = await self._library.list()
        await exchange.reply(
            {"object": "list", "data": [_model_shape(entry, entry.name.display) for entry in entries]}
        )

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{model}."""
        name = exchange.request.path_params["model"]
        await exchange.reply(_model_shape(await self._library.find(name), name))

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        wanted, asked = read_chat_completion(await exchange.fields("ChatCompletionRequest"))
        if not asked.model:
            raise RequestError("model is required", where="body.model")
        model = await self._generator.find(asked.model, "chat")
        options = self._generator.options(model, asked.options, DEFAULTS)
        prepared = await self._generator.prepare_chat(asked, model, options)
        kind = "chat.completion.chunk" if wanted.is_stream else "chat.completion"
        envelope = Envelope(new_id("chatcmpl"), kind, wanted.model, int(time.time()))
        if wanted.is_stream:
            await self._stream_chat(exchange, prepared, wanted, envelope)
            return
        piece, outcome = await self._whole(prepared)
        message = MessageShape(role="assistant", content=piece.content, reasoning=piece.thinking)
        choice = ChoiceShape(
            index=0, message=message, finish_reason=_reason(outcome), logprobs=chat_logprobs(piece.logprobs)
        )
        await exchange.reply(envelope.around([choice], outcome))

    async def _stream_chat(
        self, exchange: Exchange, prepared: Prepared, wanted: Wanted, envelope: Envelope
    ) -> None:
        role = "assistant"

        async def emit(piece: Piece) -> None:
            nonlocal role
            # reasoning and answer never share a chunk; the log-probabilities go with the later one
            if piece.thinking and piece.content:
                await emit(Piece(thinking=piece.thinking))
                piece = Piece(piece.content, "", piece.logprobs)
            delta = DeltaShape(role=role, content=piece.content, reasoning=piece.thinking)
            role = ""
            choice = ChunkChoiceShape(
                index=0, delta=delta, finish_reason=None, logprobs=chat_logprobs(piece.logprobs)
            )
            await exchange.push(envelope.around([choice]))

        outcome = await self._generator.speak(prepared, emit, exchange.tell)
        if role:  # nothing was said at all
            await emit(Piece())
        last = ChunkChoiceShape(index=0, delta=DeltaShape(), finish_reason=_reason(outcome))
        await self._end(exchange, wanted, envelope, [last], outcome)

    async def complete(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        wanted, asked = read_completion(await exchange.fields("CompletionRequest"))
        if not asked.model:
            raise ModelNotFound("model '' not found", where="body.model")
        model = await self._generator.find(asked.model, "generate")
        options = self._generator.options(model, asked.options, DEFAULTS)
        prepared = await self._generator.prepare_generate(asked, model, options)
        envelope = Envelope(new_id("cmpl"), "text_completion", wanted.model, int(time.time()))
        if wanted.is_stream:
            await self._stream_text(exchange, prepared, wanted, envelope)
            return
        piece, outcome = await self._whole(prepared)
        choice = TextChoiceShape(
            text=piece.content,
            index=0,
            finish_reason=_reason(outcome),
            logprobs=text_logprobs(piece.logprobs, 0),
        )
        await exchange.reply(envelope.around([choice], outcome))

    async def _stream_text(
        self, exchange: Exchange, prepared: Prepared, wanted: Wanted, envelope: Envelope
    ) -> None:
        n_characters = 0

        async def emit(piece: Piece) -> None:
            nonlocal n_characters
            logprobs = text_logprobs(piece.logprobs, n_characters)
            n_characters += len(piece.content)
            choice = TextChoiceShape(text=piece.content, index=0, finish_reason=None, logprobs=logprobs)
            await exchange.push(envelope.around([choice]))

        outcome = await self._generator.speak(prepared, emit, exchange.tell)
        last = TextChoiceShape(text="", index=0, finish_reason=_reason(outcome))
        await self._end(exchange, wanted, envelope, [last], outcome)

    async def _end(
        self, exchange: Exchange, wanted: Wanted, envelope: Envelope, choices: Choices, outcome: Outcome
    ) -> None:
        await exchange.push(envelope.around(choices, outcome, has_usage=False))
        if wanted.has_usage:
            await exchange.push(envelope.around([], outcome))
        await exchange.finish(OPENAI.done)

    async def _whole(self, prepared: Prepared) -> tuple[Piece, Outcome]:
        pieces: list[Piece] = []

        async def collect(piece: Piece) -> None:
            pieces.append(piece)

        outcome = await self._generator.speak(prepared, collect)
        return joined(pieces), outcome


def _reason(outcome: Outcome) -> str:
    return DONE_REASONS[outcome.finished.reason]


def _model_shape(entry: Entry, shown_id: str) -> ModelShape:
    return ModelShape(
        id=shown_id, object="model", created=int(entry.modified_at.timestamp()), owned_by=entry.name.namespace
    )
