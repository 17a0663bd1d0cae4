"""A gateway over real sockets, with a small scheduler, runner and runner host behind it that do as told."""

import hashlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from actors.actor import not_understood
from actors.config import Config
from actors.errors import RuntimeFault
from actors.gateway.service import Gateway
from actors.inherited import bind_tcp, bind_unix, listener_of
from actors.link import Replies, serve
from actors.protocol import (
    Acquire,
    Chunk,
    DeviceMemory,
    DoneReason,
    Finished,
    Generate,
    GetStats,
    Inspect,
    Lease,
    ListLoaded,
    Loaded,
    LoadedModel,
    Logprob,
    MemoryItem,
    MemoryReport,
    ModelInfo,
    Request,
    Stats,
    TensorEntry,
    Tokenize,
    TokenLogprob,
    Tokens,
    Unload,
    WaitingModel,
)

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
THINK_TEMPLATE = TEMPLATE + "{% if enable_thinking %}<think>{% endif %}"
INFO = ModelInfo(
    architecture="llama",
    metadata={
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "tokenizer.ggml.tokens": [],
    },
    tensors=(TensorEntry("output.weight", "Q8_0", (64, 320)),),
    n_parameters=8_000_000,
    file_type="Q8_0",
    chat_template=TEMPLATE,
)
WORDS = ("Hello", ", ", "world", "!")
N_CTX = 64


@dataclass
class FakeRunner:
    """Says `words`, one token each; `before_chunk(n)` may wait, or kill it."""

    words: tuple[str, ...] = WORDS
    reason: DoneReason = DoneReason.EOS
    fault: RuntimeFault | None = None
    before_chunk: Callable[[int], Awaitable[None]] | None = None
    requests: list[Generate] = field(default_factory=list)
    tokenized: list[Tokenize] = field(default_factory=list)
    n_cancelled: int = 0
    cancelled: trio.Event = field(default_factory=trio.Event)
    life: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def handle(self, request: Request, replies: Replies) -> None:
        match request:
            case Generate():
                self.requests.append(request)
                await self._generate(request, replies)
            case Tokenize():
                self.tokenized.append(request)
                await replies.send(Tokens(tuple(request.text.encode())))
            case _:
                raise not_understood(request)

    async def _generate(self, request: Generate, replies: Replies) -> None:
        if self.fault is not None:
            raise self.fault
        words = self.words[: request.n_predict if request.n_predict >= 0 else None]
        try:
            for n in range(len(request.resume), len(words)):
                if self.before_chunk is not None:
                    await self.before_chunk(n)
                await replies.send(Chunk(words[n], (100 + n,), self._logprobs(request, words[n])))
        except trio.Cancelled:
            self.n_cancelled += 1
            self.cancelled.set()
            raise
        n_new = len(words) - len(request.resume)
        await replies.send(
            Finished(
                reason=self.reason,
                prompt_tokens=7,
                cached_tokens=2,
                dropped_tokens=0,
                predicted_tokens=n_new,
                queue_s=0.0,
                prompt_s=0.25,
                predict_s=0.5,
                context=(1, 2, 3),
            )
        )

    def _logprobs(self, request: Generate, word: str) -> tuple[Logprob, ...]:
        if request.n_logprobs < 0:
            return ()
        top = tuple(TokenLogprob(i, f"t{i}".encode(), -1.0 - i) for i in range(request.n_logprobs))
        return (Logprob(TokenLogprob(5, word.encode(), -0.5), top),)


@dataclass
class FakeScheduler:
    """Leases whatever runner is at `address`; `before_lease` may tell why not yet, `fault` refuses."""

    address: str = ""
    fault: RuntimeFault | None = None
    before_lease: Callable[[Replies], Awaitable[None]] | None = None
    acquired: list[Acquire] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    loaded: tuple[LoadedModel, ...] = ()
    waiting: tuple[WaitingModel, ...] = ()
    n_leases: int = 0
    leased: trio.Event = field(default_factory=trio.Event)
    released: trio.Event = field(default_factory=trio.Event)

    async def handle(self, request: Request, replies: Replies) -> None:
        match request:
            case Acquire():
                self.acquired.append(request)
                if self.before_lease is not None:
                    await self.before_lease(replies)
                if self.fault is not None:
                    raise self.fault
                await self._lease(replies)
            case Unload():
                self.unloaded.append(request.digest)
            case ListLoaded():
                await replies.send(Loaded(self.loaded, self.waiting))
            case GetStats():
                gauges = {"queued": 3.0, "held_bytes:cpu": 7.0}
                await replies.send(Stats("scheduler", 1, "test", 1.0, gauges))
            case _:
                raise not_understood(request)

    async def _lease(self, replies: Replies) -> None:
        self.n_leases += 1
        self.leased.set()
        try:
            await replies.send(Lease(runner_id="1", address=self.address, n_ctx=N_CTX, load_s=0.0))
            await trio.sleep_forever()
        finally:
            self.n_leases -= 1
            self.released.set()


@dataclass
class Rig:
    """Everything a test touches."""

    client: httpx.AsyncClient
    gateway: Gateway
    scheduler: FakeScheduler
    runner: FakeRunner
    config: Config
    port: int
    infos: dict[str, ModelInfo]
    nursery: trio.Nursery
    scheduler_life: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def start_scheduler(self) -> None:
        """The scheduler, for the first time or again."""
        self.scheduler.leased = trio.Event()
        self.scheduler_life = trio.CancelScope()
        path = f"{self.config.run_dir}/scheduler.sock"
        await self.nursery.start(_serve, path, self.scheduler.handle, "scheduler", self.scheduler_life)

    async def start_runner(self, runner: FakeRunner, runner_id: str) -> None:
        """A (further) runner, which the scheduler leases from now on."""
        path = f"{self.config.run_dir}/runner-{runner_id}.sock"
        await self.nursery.start(_serve, path, runner.handle, f"runner-{runner_id}", runner.life)
        self.scheduler.address = f"unix:{path}"

    async def add_model(self, name: str = "tiny", info: ModelInfo = INFO, **recipe: object) -> str:
        """Create a model from a blob of made-up bytes; gives the blob's digest."""
        data = f"GGUF of {name}".encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.infos[digest.replace(":", "-")] = info
        (await self.client.post(f"/api/blobs/{digest}", content=data)).raise_for_status()
        body = {"model": name, "files": {"a.gguf": digest}, "stream": False, **recipe}
        (await self.post("/api/create", body)).raise_for_status()
        return digest


async def _serve(
    path: str,
    handler: Callable[[Request, Replies], Awaitable[None]],
    name: str,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    listener = listener_of(bind_unix(path))
    with scope:  # serving ends by closing the listener
        await serve(listener, handler, name=name, task_status=task_status)


@asynccontextmanager
async def gateway_rig(run_dir: Path, models_dir: Path, **settings: object) -> AsyncGenerator[Rig, None]:
    """Start everything; stop it at the end."""
    config = Config(run_dir=str(run_dir), models_dir=str(models_dir), **settings)  # pyright: ignore[reportArgumentType]  # as a test names them
    sock = bind_tcp("127.0.0.1", 0)
    port: int = sock.getsockname()[1]
    infos: dict[str, ModelInfo] = {}

    async def inspect(request: Request, replies: Replies) -> None:
        if not isinstance(request, Inspect):
            raise not_understood(request)
        await replies.send(infos.get(Path(request.path).name, INFO))

    async with trio.open_nursery() as nursery:
        scheduler, runner, gateway = FakeScheduler(), FakeRunner(), Gateway(config, listener=sock)
        await nursery.start(_serve, f"{run_dir}/host.sock", inspect, "host", trio.CancelScope())
        await nursery.start(lambda *, task_status: gateway.run(task_status=task_status))
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False, verify=False
        ) as client:
            rig = Rig(client, gateway, scheduler, runner, config, port, infos, nursery)
            await rig.start_scheduler()
            await rig.start_runner(runner, "1")
            yield rig
        nursery.cancel_scope.cancel()


def report(planned: int = 10) -> MemoryReport:
    """A memory report: one layer on the CPU, one and the output on a GPU."""
    item, nothing = MemoryItem(planned, planned * 2, "allocated"), MemoryItem(0)
    cpu = DeviceMemory("cpu", "CPU", (item, nothing, nothing), (item, nothing, nothing), item, nothing)
    gpu = DeviceMemory("GPU-1", "GPU", (nothing, item, item), (nothing, item, nothing), item, item)
    return MemoryReport((cpu, gpu), item, 2, 4096, 8192, 512, 4)


def tcp(port: int) -> socket.socket:
    """A plain connection, for what httpx would not send."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)
