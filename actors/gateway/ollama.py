"""Ollama's /api/generate and /api/chat."""

from collections.abc import Callable
from typing import TypedDict

from actors.errors import ModelNotFound, RequestError
from actors.gateway.completion import Outcome
from actors.gateway.exchange import Exchange
from actors.gateway.generation import DONE_REASONS, Generator, Model, Piece, Prepared, joined
from actors.gateway.leases import Leases
from actors.gateway.options import Options
from actors.gateway.requests import Asked, read_chat, read_generate
from actors.gateway.shapes import (
    AnswerShape,
    ChatShape,
    DebugShape,
    GenerateShape,
    MessageShape,
    TruncatedShape,
    duration_ns,
    logprob_shapes,
    now_text,
    truncated_shape,
)

MakeShape = Callable[[Piece, Outcome | None], AnswerShape]


class Counts(TypedDict, total=False):
    """What the last part of an answer has beside the text."""

    done_reason: str
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_cached_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int
    truncated: TruncatedShape | None


class OllamaAnswers:
    """The handlers."""

    def __init__(self, generator: Generator, leases: Leases) -> None:
        self._generator = generator
        self._leases = leases

    async def generate(self, exchange: Exchange) -> None:
        """POST /api/generate; an empty prompt loads, or with keep_alive 0 unloads."""
        asked = read_generate(await exchange.fields("GenerateRequest"))
        if not asked.model:
            raise ModelNotFound("model '' not found", where="body.model")
        model = await self._generator.find(asked.model, "generate")
        options = self._generator.options(model, asked.options)
        if not asked.prompt and not asked.suffix:
            reason = await self._load(asked, model, options)
            await exchange.reply(
                GenerateShape(
                    model=asked.model, created_at=now_text(), response="", done=True, done_reason=reason
                )
            )
            return
        prepared = await self._generator.prepare_generate(asked, model, options)

        def shape(piece: Piece, outcome: Outcome | None) -> GenerateShape:
            return GenerateShape(
                model=asked.model,
                created_at=now_text(),
                response=piece.content,
                thinking=piece.thinking,
                done=outcome is not None,
                logprobs=logprob_shapes(piece.logprobs),
                context=outcome.finished.context if outcome is not None and not asked.is_raw else (),
                **_counts(outcome),
            )

        if asked.is_debug:
            debug = DebugShape(prepared.text)
            await exchange.reply(
                GenerateShape(
                    model=asked.model, created_at=now_text(), response="", done=False, debug_info=debug
                )
            )
        else:
            await self._answer(exchange, asked, prepared, shape)

    async def chat(self, exchange: Exchange) -> None:
        """POST /api/chat; no messages load, or with keep_alive 0 unload."""
        asked = read_chat(await exchange.fields("ChatRequest"))
        if not asked.model:
            raise RequestError("model is required", where="body.model")
        model = await self._generator.find(asked.model, "chat")
        options = self._generator.options(model, asked.options)
        if not asked.messages:
            reason = await self._load(asked, model, options)
            await exchange.reply(
                ChatShape(
                    model=asked.model,
                    created_at=now_text(),
                    message=_message(Piece()),
                    done=True,
                    done_reason=reason,
                )
            )
            return
        prepared = await self._generator.prepare_chat(asked, model, options)

        def shape(piece: Piece, outcome: Outcome | None) -> ChatShape:
            return ChatShape(
                model=asked.model,
                created_at=now_text(),
                message=_message(piece),
                done=outcome is not None,
                logprobs=logprob_shapes(piece.logprobs),
                **_counts(outcome),
            )

        if asked.is_debug:
            debug = DebugShape(prepared.text)
            await exchange.reply(
                ChatShape(
                    model=asked.model,
                    created_at=now_text(),
                    message=_message(Piece()),
                    done=False,
                    debug_info=debug,
                )
            )
        else:
            await self._answer(exchange, asked, prepared, shape)

    async def _load(self, asked: Asked, model: Model, options: Options) -> str:
        """Load or unload; the done_reason that tells which."""
        if asked.keep_alive_s == 0:
            await self._leases.unload(model.entry.spec().digest)
            return "unload"
        await self._generator.load(model, options, asked.keep_alive_s)
        return "load"

    async def _answer(self, exchange: Exchange, asked: Asked, prepared: Prepared, shape: MakeShape) -> None:
        if asked.is_stream:
            outcome = await self._generator.speak(prepared, lambda piece: exchange.push(shape(piece, None)))
            await exchange.push(shape(Piece(), outcome))
            await exchange.finish()
            return
        pieces: list[Piece] = []

        async def collect(piece: Piece) -> None:
            pieces.append(piece)

        outcome = await self._generator.speak(prepared, collect)
        await exchange.reply(shape(joined(pieces), outcome))


def _message(piece: Piece) -> MessageShape:
    return MessageShape(role="assistant", content=piece.content, thinking=piece.thinking)


def _counts(outcome: Outcome | None) -> Counts:
    if outcome is None:
        return {}
    finished = outcome.finished
    return {
        "done_reason": DONE_REASONS[finished.reason],
        "total_duration": duration_ns(outcome.total_s),
        "load_duration": duration_ns(outcome.load_s),
        "prompt_eval_count": finished.prompt_tokens,
        "prompt_cached_count": finished.cached_tokens,
        "prompt_eval_duration": duration_ns(finished.prompt_s),
        "eval_count": finished.predicted_tokens,
        "eval_duration": duration_ns(finished.predict_s),
        "truncated": truncated_shape(outcome.left_out),
    }
