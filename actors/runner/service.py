"""The runner actor: one model, loaded by steps that the scheduler asks for, then served.

    empty --Alloc--> allocated --Commit--> ready --Close--> empty

Fit can be asked at any time and changes nothing.  A load is one conversation at a time; generating needs
`ready`.  A load that is given up, by Close or because who asked is gone, leaves the runner empty.
"""

import enum
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar

import msgspec
import trio

from actors.actor import not_understood, stay_connected
from actors.config import Config
from actors.errors import RemoteProtocolError, RequestError
from actors.link import Link, Replies
from actors.protocol import (
    Alloc,
    Close,
    Commit,
    Detokenize,
    Finished,
    Fit,
    Generate,
    Keep,
    LoadOptions,
    LoadProgress,
    Register,
    Request,
    Text,
    Tokenize,
    Tokens,
)
from actors.runner.devices import open_backends, open_host
from actors.runner.engine import Engine
from actors.runner.model import Model
from actors.runner.progress import Tell, Teller
from actors.runner.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")


class Phase(enum.Enum):
    """What the runner holds."""

    EMPTY = "empty"
    ALLOCATED = "allocated"
    READY = "ready"


MOVES: Mapping[Phase, frozenset[Phase]] = {
    Phase.EMPTY: frozenset({Phase.ALLOCATED}),
    Phase.ALLOCATED: frozenset({Phase.READY, Phase.EMPTY}),
    Phase.READY: frozenset({Phase.EMPTY}),
}


def with_defaults(options: LoadOptions, config: Config) -> LoadOptions:
    """What a request left open, as the configuration has it."""
    return msgspec.structs.replace(
        options,
        n_ctx=options.n_ctx or config.n_ctx,
        n_batch=options.n_batch or config.n_batch,
        n_thread=options.n_thread or config.n_thread,
        n_parallel=options.n_parallel or config.n_parallel,
        kv_type=options.kv_type or config.kv_type,
    )


class Runner:
    """See the module's text.  Satisfies `actors.actor.Service`."""

    def __init__(self, config: Config, runner_id: str) -> None:
        self._config = config
        self._runner_id = runner_id
        self._phase = Phase.EMPTY
        self._model: Model | None = None
        self._fitted: Model | None = (
            None  # planned last: an Alloc mostly follows for the same file and layout
        )
        self._engine: Engine | None = None
        self._keep: Keep | None = None  # the scheduler's, kept for the next one
        self._loading = trio.Lock()
        self._work: trio.CancelScope | None = None  # of the load that is under way
        self._engine_nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep registered with the scheduler, and own the engine of the model that is ready."""
        async with trio.open_nursery() as nursery:
            self._engine_nursery = nursery
            nursery.start_soon(self._register)
            task_status.started()
            await trio.sleep_forever()

    def gauges(self) -> dict[str, float]:
        """Counters for GetStats."""
        if self._engine is None or self._model is None:
            return {}
        return self._engine.gauges() | self._model.gauges()

    async def handle(self, request: Request, replies: Replies) -> None:
        """Answer one request."""
        match request:
            case Fit():
                model = await trio.to_thread.run_sync(self._open, request, self._take_fitted())
                self._keep_fitted(model)
                await replies.send(await trio.to_thread.run_sync(model.report))
            case Alloc():
                await self._alloc(request, replies)
            case Commit():
                await self._commit(replies)
            case Close():
                if self._work is not None:
                    self._work.cancel()
                async with self._loading:
                    await self._close()
            case Keep():
                self._keep = request
            case Generate():
                await self._generate(request, replies)
            case Tokenize():
                await replies.send(
                    Tokens(await trio.to_thread.run_sync(tokenize, self._tokenizer(), request))
                )
            case Detokenize():
                await replies.send(
                    Text(await trio.to_thread.run_sync(detokenize, self._tokenizer(), request))
                )
            case _:
                raise not_understood(request)

    async def _alloc(self, request: Alloc, replies: Replies) -> None:
        async with self._loading:
            if self._phase is not Phase.EMPTY:
                raise RequestError(
                    f"this runner is {self._phase.value} already", where="alloc", mend="close first"
                )
            with ExitStack() as undo:
                model = await trio.to_thread.run_sync(self._open, request, self._take_fitted())
                undo.callback(model.close)
                is_allocated = await self._told(model.allocate, replies)
                report = await trio.to_thread.run_sync(model.report)
                if is_allocated:
                    undo.pop_all()
                    self._model = model
                    self._move(Phase.ALLOCATED)
            await replies.send(report)

    async def _commit(self, replies: Replies) -> None:
        async with self._loading:
            model = self._model
            if self._phase is not Phase.ALLOCATED or model is None:
                raise RequestError(
                    f"this runner is {self._phase.value}", where="commit", mend="alloc comes first"
                )
            with ExitStack() as undo:
                undo.callback(self._drop)  # half a model is none
                await self._told(model.load, replies)
                engine = Engine(model, self._config.max_queue)
                assert self._engine_nursery is not None, "requests come once the service is up"
                with trio.CancelScope(
                    shield=True
                ):  # it starts without waiting; half started nobody would stop it
                    await self._engine_nursery.start(engine.run)
                undo.pop_all()
            self._engine = engine
            self._move(Phase.READY)
            await replies.send(await trio.to_thread.run_sync(model.report))

    async def _told(self, work: Callable[[Tell], T], replies: Replies) -> T:
        """Do a part of a load on a thread, passing on how far it is; RequestError when Close ends it."""
        progress, told = trio.open_memory_channel[LoadProgress](1)
        results: list[T] = []

        async def run() -> None:
            async with progress:
                results.append(await trio.to_thread.run_sync(work, Teller(progress)))

        try:
            with trio.CancelScope() as self._work:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    async with told:
                        async for item in told:
                            await replies.send(item)
        finally:
            self._work = None
        if not results:
            raise RequestError("this runner was closed while it loaded", where="runner")
        return results[0]

    def _drop(self) -> None:
        """Give up what is allocated."""
        if self._model is not None:
            self._model.close()
            self._model = None
            self._move(Phase.EMPTY)

    async def _generate(self, request: Generate, replies: Replies) -> None:
        engine = self._engine
        if engine is None:
            raise RequestError(
                f"this runner is {self._phase.value}", where="generate", mend="load a model first"
            )
        async with engine.open(request, replies.offer) as sequence:
            while True:
                try:
                    item = await sequence.receive()
                except trio.EndOfChannel:
                    return
                engine.resume()
                await replies.send(item)
                if isinstance(item, Finished):
                    return

    async def _register(self) -> None:
        """Tell every scheduler that comes up what this runner holds; the open stream says that it lives."""

        async def hold(link: Link) -> None:
            ready = self._model if self._phase is Phase.READY else None
            message = Register(
                runner_id=self._runner_id,
                pid=os.getpid(),
                address=self._config.socket_address(f"runner-{self._runner_id}"),
                model=ready.spec if ready else None,
                options=ready.options if ready else None,
                report=ready.report() if ready else None,
                keep=self._keep,
            )
            async with link.request(message) as stream:
                async for item in stream:
                    raise RemoteProtocolError(
                        f"{type(item).__name__} is no answer to Register", where="scheduler"
                    )

        await stay_connected(self._config.socket_address("scheduler"), f"runner-{self._runner_id}", hold)

    def _open(self, request: Fit | Alloc, fitted: Model | None) -> Model:
        options = with_defaults(request.options, self._config)
        with ExitStack() as undo:
            if fitted is not None:
                undo.callback(fitted.close)
            if fitted is not None and fitted.options.n_thread == options.n_thread:
                host = fitted.host
            else:
                host = open_host(self._config.cpu_isa, options.n_thread)
            backends = open_backends(host, request.placement, self._config.sim_dir)
            undo.pop_all()
        if fitted is not None:
            model = fitted.refit(request.model, options, request.placement, backends)
            if model is not None:
                return model
        stream_from = self._config.stream_from
        return Model.open(request.model, options, request.placement, backends, stream_from)

    def _take_fitted(self) -> Model | None:
        fitted, self._fitted = self._fitted, None
        return fitted

    def _keep_fitted(self, model: Model) -> None:
        """Until the next request; another one's, which came meanwhile, goes."""
        if self._fitted is not None:
            self._fitted.close()
        self._fitted = model

    def _tokenizer(self) -> Tokenizer:
        if self._phase is not Phase.READY or self._model is None:
            raise RequestError(
                f"this runner is {self._phase.value}", where="runner", mend="load a model first"
            )
        return self._model.tokenizer

    async def _close(self) -> None:
        """The engine leaves its last batch before the memory under it goes."""
        if (fitted := self._take_fitted()) is not None:
            fitted.close()
        model, engine = self._model, self._engine
        if model is None:
            return
        self._model = self._engine = None
        self._move(Phase.EMPTY)
        if engine is not None:
            with trio.CancelScope(
                shield=True
            ):  # bounded by a batch; half closed, the memory would stay taken
                await engine.stop()
        model.close()

    def _move(self, phase: Phase) -> None:
        if phase not in MOVES[self._phase]:
            raise AssertionError(f"a runner does not go from {self._phase.value} to {phase.value}")
        self._phase = phase


def tokenize(tokenizer: Tokenizer, request: Tokenize) -> tuple[int, ...]:
    """Token ids of a text; a long one takes a while."""
    ids = tokenizer.encode(request.text, add_special=request.add_special, parse_special=request.parse_special)
    return tuple(ids)


def detokenize(tokenizer: Tokenizer, request: Detokenize) -> str:
    """The text of token ids; RequestError names one outside the vocabulary."""
    worst = max(request.tokens, default=0)
    if worst >= tokenizer.n_vocab:
        raise RequestError(
            f"token {worst} is outside the vocabulary of {tokenizer.n_vocab}", where="detokenize"
        )
    return tokenizer.decode(request.tokens)
