"""The public client of the socket protocol.

    async with open_client() as client, client.lease("llama3.2") as lease:
        async for item in lease.generate("Why is the sky blue?", n_predict=64):
            if isinstance(item, Chunk):
                show(item.text)

`SyncClient` in `actors/sync_client.py` has the same methods without `async`.  What goes wrong is a kind of
`errors.RuntimeFault`: PeerGone when the runtime is not up, ModelNotFound, CapacityError with the numbers, and
so on.  A call has no deadline but those of the connection itself; set one with `trio.fail_after`.
"""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from actors.config import Config, load_config
from actors.errors import PeerGone, RemoteProtocolError
from actors.link import ItemStream, Link, connect
from actors.protocol import (
    Acquire,
    Chunk,
    Detokenize,
    Devices,
    Diagnose,
    Diagnosis,
    Explain,
    Explanation,
    Finished,
    Generate,
    GetStats,
    Item,
    Lease,
    ListLoaded,
    ListModels,
    Loaded,
    LoadedModel,
    LoadOptions,
    LoadPlan,
    LoadProgress,
    Models,
    ModelSpec,
    PlanLoad,
    Queued,
    Request,
    Resolve,
    Sampling,
    Stats,
    SubscribeDevices,
    Text,
    Tokenize,
    Tokens,
    Unload,
    WaitingModel,
)

T = TypeVar("T", bound=Item)
OnWait = Callable[[Queued | LoadProgress], None]
"""Told why a lease takes time."""


class Generation:
    """The items of one Generate: iterate for Chunk items and, last, Finished.

    Leaving it early with `aclose`, by `async with`, or by leaving the lease stops the runner's work on it.
    """

    def __init__(
        self, opening: AbstractAsyncContextManager[ItemStream], open_ones: set["Generation"]
    ) -> None:
        self._opening = opening
        self._open_ones = open_ones
        self._items: ItemStream | None = None
        self._is_closed = False

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Chunk | Finished:
        item = await self.next_item()
        if item is None:
            raise StopAsyncIteration
        return item

    async def __aenter__(self) -> "Generation":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def next_item(self) -> Chunk | Finished | None:
        """The next item; None after the last."""
        if self._is_closed:
            return None
        if self._items is None:
            self._items = await self._opening.__aenter__()
            self._open_ones.add(self)
        try:
            item = await self._items.receive()
        except trio.EndOfChannel:
            await self.aclose()
            return None
        if not isinstance(item, Chunk | Finished):
            raise RemoteProtocolError(
                f"the runner answered Generate with {type(item).__name__}", where="client"
            )
        return item

    async def aclose(self) -> None:
        """Stop; nothing comes any more."""
        self._is_closed = True
        if self in self._open_ones:
            self._open_ones.discard(self)
            await self._opening.__aexit__(None, None, None)


class ModelLease:
    """A loaded model, ours until the lease is left; get one from `Client.lease`."""

    def __init__(self, spec: ModelSpec, lease: Lease, runner: Link) -> None:
        self.model = spec
        self.n_ctx = lease.n_ctx
        self.load_s = lease.load_s
        self.runner_id = lease.runner_id
        self._runner = runner
        self._generations: set[Generation] = set()

    def generate(
        self,
        prompt: str | tuple[int, ...],
        *,
        sampling: Sampling | None = None,
        n_predict: int = -1,
        stop: tuple[str, ...] = (),
        n_logprobs: int = -1,
    ) -> Generation:
        """Sample after a prompt (text, special tokens parsed, or token ids); see `protocol.Generate`."""
        message = Generate(
            prompt=prompt,
            sampling=Sampling() if sampling is None else sampling,
            n_predict=n_predict,
            stop=stop,
            n_logprobs=n_logprobs,
        )
        return self.send(message)

    def send(self, message: Generate) -> Generation:
        """`generate` with all that the message can say."""
        return Generation(self._runner.request(message), self._generations)

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        """Token ids of a text."""
        request = Tokenize(text=text, add_special=add_special, parse_special=parse_special)
        return (await self._runner.ask(request, Tokens)).tokens

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        """Text of token ids, invalid bytes replaced."""
        return (await self._runner.ask(Detokenize(tokens=tokens), Text)).text

    async def close_generations(self) -> None:
        """Stop what is still being generated."""
        for generation in list(self._generations):
            await generation.aclose()


class Client:
    """A runtime that is up; get one from `open_client`."""

    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self._name = name

    async def resolve(self, name: str) -> ModelSpec:
        """The model of that name; ModelNotFound."""
        return await self._ask("gateway", Resolve(name=name), ModelSpec)

    async def models(self) -> tuple[ModelSpec, ...]:
        """The library, newest first."""
        return (await self._ask("gateway", ListModels(), Models)).models

    async def loaded(self) -> tuple[LoadedModel, ...]:
        """What is in memory."""
        return (await self._ask("scheduler", ListLoaded(), Loaded)).models

    async def plan(self, name: str, options: LoadOptions | None = None) -> LoadPlan:
        """The exact memory that a load would take, without loading."""
        request = PlanLoad(model=await self.resolve(name), options=options or LoadOptions())
        return await self._ask("scheduler", request, LoadPlan)

    async def waiting(self) -> tuple[WaitingModel, ...]:
        """What somebody waits for, and why it takes time."""
        return (await self._ask("scheduler", ListLoaded(), Loaded)).waiting

    async def explain(self) -> tuple[str, ...]:
        """The scheduler's latest decisions with their reasons, oldest first."""
        return (await self._ask("scheduler", Explain(), Explanation)).decisions

    async def why(self, name: str) -> Explanation:
        """The latest load of a model with all its numbers, and the decisions about it, oldest first."""
        spec = await self.resolve(name)
        return await self._ask("scheduler", Explain(digest=spec.digest), Explanation)

    async def unload(self, name: str) -> None:
        """Unload a model once nobody uses it."""
        spec = await self.resolve(name)
        async with self._connect("scheduler") as link, link.request(Unload(digest=spec.digest)) as items:
            async for item in items:
                raise RemoteProtocolError(
                    f"the scheduler answered Unload with {type(item).__name__}", where="client"
                )

    async def devices(self) -> Devices:
        """What devices exist, and how much memory is free now."""
        async with self._connect("discovery") as link, link.request(SubscribeDevices()) as items:
            item = await items.receive()
        if not isinstance(item, Devices):
            raise RemoteProtocolError(f"discovery answered with {type(item).__name__}", where="client")
        return item

    async def diagnose(self) -> Diagnosis:
        """What discovery found, what it left out, and why."""
        return await self._ask("discovery", Diagnose(), Diagnosis)

    async def stats(self, actor: str) -> Stats:
        """How an actor is: "gateway", "scheduler", "discovery", "host", or a runner by its name."""
        return await self._ask(actor, GetStats(), Stats)

    @asynccontextmanager
    async def lease(
        self,
        name: str,
        options: LoadOptions | None = None,
        *,
        keep_alive_s: float | None = None,
        on_wait: OnWait | None = None,
    ) -> AsyncGenerator[ModelLease, None]:
        """Have the model loaded, and kept loaded inside the block; `on_wait` hears why it takes time."""
        spec = await self.resolve(name)
        request = Acquire(model=spec, options=options or LoadOptions(), keep_alive_s=keep_alive_s)
        async with self._connect("scheduler") as scheduler, scheduler.request(request) as items:
            granted = await _granted(items, on_wait)
            async with connect(granted.address, name=self._name) as runner:
                lease = ModelLease(spec, granted, runner)
                try:
                    yield lease
                finally:
                    await lease.close_generations()

    def _connect(self, actor: str) -> AbstractAsyncContextManager[Link]:
        return connect(self._config.socket_address(actor), name=self._name)

    async def _ask(self, actor: str, request: Request, answer: type[T]) -> T:
        async with self._connect(actor) as link:
            return await link.ask(request, answer)


async def _granted(items: ItemStream, on_wait: OnWait | None) -> Lease:
    async for item in items:
        match item:
            case Lease():
                return item
            case Queued() | LoadProgress():
                if on_wait is not None:
                    on_wait(item)
            case _:
                raise RemoteProtocolError(
                    f"the scheduler answered Acquire with {type(item).__name__}", where="client"
                )
    raise RemoteProtocolError("the scheduler ended an Acquire without a lease", where="client")


@asynccontextmanager
async def open_client(
    run_dir: str | Path | None = None, *, name: str = "client"
) -> AsyncGenerator[Client, None]:
    """A client of the runtime whose sockets are in `run_dir`; None: where this user's runtime keeps them.

    PeerGone when no runtime is up there.
    """
    environ = dict(os.environ)
    if run_dir is not None:
        environ["RUNTIME_RUN_DIR"] = str(run_dir)
    config = load_config(None, environ)
    client = Client(config, name)
    try:
        await client.stats("gateway")
    except PeerGone as gone:
        raise PeerGone(
            f"no runtime is up in {config.run_dir}", where="client", mend="start it: runtime up"
        ) from gone
    yield client
