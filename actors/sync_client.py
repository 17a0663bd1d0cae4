"""The client without `async`, for scripts and notebooks: a thread runs the loop, calls wait for it.

with SyncClient() as client, client.lease("llama3.2") as lease:
    for item in lease.generate("Why is the sky blue?", n_predict=64):
        ...
"""

import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import trio

from actors.client import ModelLease, OnWait, open_client
from actors.errors import PeerGone, RuntimeFault
from actors.protocol import (
    Chunk,
    Devices,
    Explanation,
    Finished,
    Generate,
    LoadedModel,
    LoadOptions,
    LoadPlan,
    ModelSpec,
    Sampling,
    Stats,
    WaitingModel,
)

T = TypeVar("T")


class SyncLease:
    """A loaded model, ours until the `with` block of `SyncClient.lease` is left."""

    def __init__(self, client: "SyncClient", lease: ModelLease) -> None:
        self._client = client
        self._lease = lease
        self.model = lease.model
        self.n_ctx = lease.n_ctx
        self.load_s = lease.load_s

    def generate(
        self,
        prompt: str | tuple[int, ...],
        *,
        sampling: Sampling | None = None,
        n_predict: int = -1,
        stop: tuple[str, ...] = (),
        n_logprobs: int = -1,
    ) -> Iterator[Chunk | Finished]:
        """`client.ModelLease.generate`; closing the iterator stops the runner's work."""
        return self.send(
            Generate(
                prompt=prompt,
                sampling=Sampling() if sampling is None else sampling,
                n_predict=n_predict,
                stop=stop,
                n_logprobs=n_logprobs,
            )
        )

    def send(self, message: Generate) -> Iterator[Chunk | Finished]:
        """`generate` with all that the message can say."""
        generation = self._lease.send(message)
        try:
            while (item := self._client.call(generation.next_item)) is not None:
                yield item
        finally:
            self._client.call(generation.aclose)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Token ids of a text."""
        return self._client.call(
            lambda: self._lease.tokenize(text, add_special=add_special, parse_special=parse_special)
        )

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """Text of token ids, invalid bytes replaced."""
        return self._client.call(lambda: self._lease.detokenize(tokens))


class SyncClient:
    """`client.Client` for code without a loop; use it in a `with` block.  Any thread may call it."""

    def __init__(self, run_dir: str | Path | None = None, *, name: str = "client") -> None:
        self._run_dir = run_dir
        self._name = name
        self._up = threading.Event()
        self._fault: RuntimeFault | None = None
        self._thread = threading.Thread(
            target=trio.run, args=(self._serve,), name="runtime-client", daemon=True
        )
        self._token: trio.lowlevel.TrioToken | None = None

    def __enter__(self) -> "SyncClient":
        self._thread.start()
        self._up.wait()
        if self._fault is not None:
            self._thread.join()
            raise self._fault
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            trio.from_thread.run_sync(self._nursery.cancel_scope.cancel, trio_token=self._token)
        self._thread.join()
        self._token = None

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run an async function on the client's loop, and wait for it."""
        if self._token is None:
            raise PeerGone("the client is closed", where="client", mend="use it inside its `with` block")
        try:
            return trio.from_thread.run(function, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as exc:
            raise PeerGone("the client was closed meanwhile", where="client") from exc

    def resolve(self, name: str) -> ModelSpec:
        """The model of that name; ModelNotFound."""
        return self.call(lambda: self._client.resolve(name))

    def models(self) -> tuple[ModelSpec, ...]:
        """The library, newest first."""
        return self.call(lambda: self._client.models())

    def loaded(self) -> tuple[LoadedModel, ...]:
        """What is in memory."""
        return self.call(lambda: self._client.loaded())

    def plan(self, name: str, options: LoadOptions | None = None) -> LoadPlan:
        """The exact memory that a load would take, without loading."""
        return self.call(lambda: self._client.plan(name, options))

    def waiting(self) -> tuple[WaitingModel, ...]:
        """What somebody waits for, and why it takes time."""
        return self.call(lambda: self._client.waiting())

    def explain(self) -> tuple[str, ...]:
        """The scheduler's latest decisions with their reasons, oldest first."""
        return self.call(lambda: self._client.explain())

    def why(self, name: str) -> Explanation:
        """The latest load of a model with all its numbers, and the decisions about it, oldest first."""
        return self.call(lambda: self._client.why(name))

    def unload(self, name: str) -> None:
        """Unload a model once nobody uses it."""
        self.call(lambda: self._client.unload(name))

    def devices(self) -> Devices:
        """What devices exist, and how much memory is free now."""
        return self.call(lambda: self._client.devices())

    def stats(self, actor: str) -> Stats:
        """How an actor is."""
        return self.call(lambda: self._client.stats(actor))

    @contextmanager
    def lease(
        self,
        name: str,
        options: LoadOptions | None = None,
        *,
        keep_alive_s: float | None = None,
        on_wait: OnWait | None = None,
    ) -> Generator[SyncLease, None, None]:
        """Have the model loaded, and kept loaded inside the block; `on_wait` is called on another thread."""
        release = trio.Event()
        released = threading.Event()

        async def hold(*, task_status: trio.TaskStatus[ModelLease]) -> None:
            # a task of its own: what enters the lease has to leave it
            try:
                async with self._client.lease(
                    name, options, keep_alive_s=keep_alive_s, on_wait=on_wait
                ) as lease:
                    task_status.started(lease)
                    await release.wait()
            finally:
                released.set()

        async def start() -> ModelLease:
            return await self._nursery.start(hold)

        lease = self.call(start)
        try:
            yield SyncLease(self, lease)
        finally:
            if self._token is not None:
                trio.from_thread.run_sync(release.set, trio_token=self._token)
                released.wait()

    async def _serve(self) -> None:
        try:
            async with open_client(self._run_dir, name=self._name) as client, trio.open_nursery() as nursery:
                self._client = client
                self._nursery = nursery
                self._token = trio.lowlevel.current_trio_token()
                self._up.set()
                await trio.sleep_forever()
        except RuntimeFault as fault:
            self._fault = fault
        finally:
            self._up.set()
