"""From a model's name and a conversation to pieces of an answer: what both APIs do alike.

prepared = await generator.prepare_chat(asked, entry, info, ...)     checks, renders
outcome = await generator.speak(prepared, emit)                      loads, generates, splits
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from actors.errors import RequestError, Unsupported
from actors.gateway.completion import Completions, Job, LeftOut, MakePrompt, Outcome, Prompt, Tokenizer
from actors.gateway.fields import JsonObject
from actors.gateway.leases import OnWait, unheard
from actors.gateway.library.capabilities import capabilities
from actors.gateway.library.entry import Entry
from actors.gateway.library.store import Library
from actors.gateway.metrics import Metrics
from actors.gateway.options import Options, read_options
from actors.gateway.requests import Asked, ChatAsked, GenerateAsked, Think
from actors.gateway.templates.chat import ChatRenderer
from actors.gateway.thinking import OPEN, ThinkingSplitter
from actors.protocol import Acquire, Chunk, DoneReason, Logprob, ModelInfo

log = logging.getLogger(__name__)

MAX_SPECIAL = 8  # tokens without any text that a tokenizer may add round a prompt

DONE_REASONS = {
    DoneReason.EOS: "stop",
    DoneReason.STOP_STRING: "stop",
    DoneReason.LIMIT: "length",
    DoneReason.CONTEXT: "length",
    # cut off, not complete: the clients know no better word
    DoneReason.REPETITION: "length",
    DoneReason.CANCELLED: "length",
    DoneReason.ERROR: "length",
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the library and what can be known of it without loading it."""

    entry: Entry
    info: ModelInfo
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer."""

    content: str = ""
    thinking: str = ""
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ready to run.  `text` is the rendered prompt, before it is fitted into the context."""

    job: Job
    text: str
    splitter: ThinkingSplitter | None


Emit = Callable[[Piece], Awaitable[None]]
Render = Callable[[Sequence[JsonObject]], Awaitable[str]]


class Generator:
    """Prepares and runs what is asked of models."""

    def __init__(
        self,
        library: Library,
        renderer: ChatRenderer,
        completions: Completions,
        metrics: Metrics,
        *,
        may_truncate: bool,
    ) -> None:
        """may_truncate: whether what does not fit into a context may be left out of a prompt."""
        self._may_truncate = may_truncate
        self._library = library
        self._renderer = renderer
        self._completions = completions
        self._metrics = metrics

    async def find(self, name: str, verb: str) -> Model:
        """The model, which can `verb` ("generate", "chat"); ModelNotFound, RequestError, Unsupported."""
        entry = await self._library.recall(name)
        info = await entry.info()
        found = capabilities(entry, info)
        if "completion" not in found:
            raise RequestError(f'"{name}" does not support {verb}', where="gateway")
        if not info.is_supported:
            raise Unsupported(
                info.reason or f"{name} is of a family that is not supported", where=entry.name.display
            )
        return Model(entry, info, found)

    def options(
        self, model: Model, asked: JsonObject, defaults: Mapping[str, object] | None = None
    ) -> Options:
        """What to run with; RequestError for an option of the wrong type."""
        return read_options(asked, model.entry.params, defaults)

    async def load(self, model: Model, options: Options, keep_alive_s: float | None) -> None:
        """Load without generating, and set how long it stays."""
        await self._completions.load(Acquire(model.entry.spec(), options.load, keep_alive_s))

    async def prepare_generate(self, asked: GenerateAsked, model: Model, options: Options) -> Prepared:
        """Check and render a prompt; RequestError when the template fails or the model cannot do it."""
        if asked.is_raw:
            return self._prepared(
                asked, model, options, asked.prompt, partial(_with_context, asked.context, asked.prompt)
            )
        if asked.suffix and "insert" not in model.capabilities:
            raise RequestError(f"{model.entry.name.full} does not support insert", where="body.suffix")
        think = _settled_think(asked, model)
        text = await self._renderer.render_prompt(
            model.entry,
            model.info,
            asked.prompt,
            suffix=asked.suffix,
            system=asked.system,
            template=asked.template,
            think=think,
            use_messages=not asked.context,
        )
        make_prompt = partial(_with_context, asked.context, text)
        return self._prepared(asked, model, options, text, make_prompt, think)

    async def prepare_chat(self, asked: ChatAsked, model: Model, options: Options) -> Prepared:
        """Check and render a conversation; RequestError as above."""
        if asked.tools:
            # a model taught tools writes its calls as text; until they are parsed, the honest answer is no
            raise RequestError(f"{model.entry.name.full} does not support tools", where="body.tools")
        think = _settled_think(asked, model)

        async def render(messages: Sequence[JsonObject]) -> str:
            return await self._renderer.render_chat(model.entry, model.info, messages, think=think)

        text = await render(asked.messages)
        make_prompt = (
            partial(_fitted, render, asked.messages, text)
            if self._truncates(asked)
            else partial(_as_is, text)
        )
        return self._prepared(asked, model, options, text, make_prompt, think)

    def _truncates(self, asked: Asked) -> bool:
        return asked.truncate and self._may_truncate

    def _prepared(
        self,
        asked: Asked,
        model: Model,
        options: Options,
        text: str,
        make_prompt: MakePrompt,
        think: Think = None,
    ) -> Prepared:
        job = Job(
            model=model.entry.spec(),
            options=options,
            make_prompt=make_prompt,
            keep_alive_s=asked.keep_alive_s,
            n_logprobs=asked.n_logprobs,
            truncate=self._truncates(asked),
            shift=asked.shift,
        )
        splitter = ThinkingSplitter(is_open=text.rstrip().endswith(OPEN)) if think else None
        return Prepared(job, text, splitter)

    async def speak(self, prepared: Prepared, emit: Emit, on_wait: OnWait = unheard) -> Outcome:
        """Load and generate; each piece goes to `emit`, whose waiting pauses this sequence alone.

        `on_wait` hears what is waited for while the model is not there.
        """
        began_s = trio.current_time()
        is_first = True
        splitter = prepared.splitter

        async def on_chunk(chunk: Chunk) -> None:
            nonlocal is_first
            if is_first:
                self._metrics.first_token(trio.current_time() - began_s)
                is_first = False
            if splitter is None:
                piece = Piece(chunk.text, "", chunk.logprobs)
            else:
                split = splitter.push(chunk.text)
                piece = Piece(split.content, split.thinking, chunk.logprobs)
            if piece != Piece():
                await emit(piece)

        outcome = await self._completions.run(prepared.job, on_chunk, on_wait)
        rest = splitter.flush() if splitter is not None else None
        if rest is not None and (rest.content or rest.thinking):
            await emit(Piece(rest.content, rest.thinking))
        return outcome


def joined(pieces: Sequence[Piece]) -> Piece:
    """A whole answer from its parts."""
    return Piece(
        "".join(piece.content for piece in pieces),
        "".join(piece.thinking for piece in pieces),
        tuple(entry for piece in pieces for entry in piece.logprobs),
    )


def _settled_think(asked: Asked, model: Model) -> Think:
    """Whether the model shall think: as asked, else if it can.  RequestError when it is asked and cannot."""
    can_think = "thinking" in model.capabilities
    if asked.think and not can_think:
        raise RequestError(f'"{asked.model}" does not support thinking', where="body.think")
    return True if asked.think is None and can_think else asked.think


async def _as_is(text: str, _tokenize: Tokenizer, _n_ctx: int) -> tuple[Prompt, LeftOut]:
    return text, LeftOut()


async def _with_context(
    context: tuple[int, ...], text: str, tokenize: Tokenizer, _n_ctx: int
) -> tuple[Prompt, LeftOut]:
    """Put the tokens of an earlier answer in front; they begin with BOS where the model wants one."""
    return context + await tokenize(text, False) if context else text, LeftOut()


async def _fitted(
    render: Render, messages: Sequence[JsonObject], text: str, tokenize: Tokenizer, n_ctx: int
) -> tuple[Prompt, LeftOut]:
    """Leave out the oldest messages, as few as it takes, when a conversation does not fit into the context.

    System messages and the last one stay; if those alone are too long, the runner cuts.
    """
    if len(text.encode()) + MAX_SPECIAL <= n_ctx:  # a token has a byte at least
        return text, LeftOut()
    whole = await tokenize(text, True)
    old = [i for i, message in enumerate(messages[:-1]) if message.get("role") != "system"]
    if len(whole) <= n_ctx or not old:
        return whole, LeftOut()

    async def without(n_out: int) -> tuple[int, ...]:
        left_out = frozenset(old[:n_out])
        kept = [message for i, message in enumerate(messages) if i not in left_out]
        return await tokenize(await render(kept), True)

    # leaving out n_most gives `found`; fewer than n_least are too few
    n_least, n_most = 1, len(old)
    found = await without(n_most)
    while n_least < n_most:
        n_out = (n_least + n_most) // 2
        tokens = await without(n_out)
        if len(tokens) <= n_ctx:
            n_most, found = n_out, tokens
        else:
            n_least = n_out + 1
    log.info("%d of %d messages were left out to fit into the context", n_most, len(messages))
    return found, LeftOut(n_most, max(0, len(whole) - len(found)))
