"""The public client against actors that answer from memory, over real sockets."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from actors.client import open_client
from actors.errors import ModelNotFound, PeerGone
from actors.inherited import bind_unix, listener_of
from actors.link import Replies, serve
from actors.protocol import (
    Acquire,
    Chunk,
    CpuInfo,
    Detokenize,
    Devices,
    DoneReason,
    Explain,
    Explanation,
    Finished,
    Generate,
    GetStats,
    Lease,
    ListLoaded,
    ListModels,
    Loaded,
    LoadProgress,
    Models,
    ModelSpec,
    Queued,
    Request,
    Resolve,
    Stats,
    SubscribeDevices,
    Text,
    Tokenize,
    Tokens,
    Unload,
)
from actors.sync_client import SyncClient

SPEC = ModelSpec(name="m:latest", digest="sha256:1", path="/m.gguf", size_bytes=1)
FINISHED = Finished(
    reason=DoneReason.EOS,
    prompt_tokens=1,
    cached_tokens=0,
    dropped_tokens=0,
    predicted_tokens=2,
    queue_s=0,
    prompt_s=0,
    predict_s=0,
)


class FakeRuntime:
    """Every actor in one."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.n_leases = 0
        self.n_generating = 0
        self.unloaded: list[str] = []

    async def handle(self, request: Request, replies: Replies) -> None:
        """Answer as the actors would."""
        match request:
            case Resolve(name="m"):
                await replies.send(SPEC)
            case Resolve():
                raise ModelNotFound(f"no model {request.name}")
            case Acquire():
                await self._lease(replies)
            case Generate():
                await self._generate(request, replies)
            case Unload():
                self.unloaded.append(request.digest)
            case _:
                await replies.send(ANSWERS[type(request)])

    async def _lease(self, replies: Replies) -> None:
        await replies.send(Queued(position=1, reason="evicting x"))
        await replies.send(LoadProgress(phase="reading", done_bytes=1, total_bytes=2))
        self.n_leases += 1
        try:
            address = f"unix:{self._run_dir}/runner-1.sock"
            await replies.send(Lease(runner_id="1", address=address, n_ctx=64, load_s=0.5))
            await trio.sleep_forever()
        finally:
            self.n_leases -= 1

    async def _generate(self, request: Generate, replies: Replies) -> None:
        self.n_generating += 1
        try:
            n = request.n_predict
            while n:
                await replies.send(Chunk(text="a", tokens=(1,)))
                n -= 1
            await replies.send(FINISHED)
        finally:
            self.n_generating -= 1

    async def wait_idle(self) -> None:
        """Until nothing is leased or generated."""
        while self.n_leases or self.n_generating:  # noqa: ASYNC110  # what ends them is on the client's side
            await trio.sleep(0.005)


ANSWERS = {
    GetStats: Stats(name="x", pid=1, build="b", uptime_s=0.0, gauges={}),
    ListModels: Models(models=(SPEC,)),
    ListLoaded: Loaded(models=()),
    Explain: Explanation(decisions=("because",)),
    SubscribeDevices: Devices(
        cpu=CpuInfo(model="c", n_cores=1, n_threads=1, instruction_sets=()), devices=()
    ),
    Tokenize: Tokens(tokens=(1, 2)),
    Detokenize: Text(text="ab"),
}


@asynccontextmanager
async def fake_runtime(run_dir: Path) -> AsyncGenerator[FakeRuntime, None]:
    """All sockets of a runtime."""
    runtime = FakeRuntime(run_dir)
    async with trio.open_nursery() as nursery:
        for name in ("gateway", "scheduler", "discovery", "runner-1"):
            listener = listener_of(bind_unix(f"{run_dir}/{name}.sock"))
            await nursery.start(partial(serve, listener, runtime.handle, name=name))
        with trio.fail_after(20):
            yield runtime
        nursery.cancel_scope.cancel()


async def test_without_a_runtime_the_error_says_how_to_start_one(run_dir: Path) -> None:
    with pytest.raises(PeerGone, match=r"no runtime is up in .*runtime up"):
        async with open_client(run_dir):
            pass


async def test_each_question_gets_its_answer(run_dir: Path) -> None:
    async with fake_runtime(run_dir) as runtime, open_client(run_dir) as client:
        assert await client.resolve("m") == SPEC
        assert await client.models() == (SPEC,)
        assert await client.loaded() == ()
        assert await client.explain() == ("because",)
        assert (await client.why("m")).decisions == ("because",)
        assert await client.waiting() == ()
        assert await client.devices() == ANSWERS[SubscribeDevices]
        assert (await client.stats("scheduler")).name == "x"
        await client.unload("m")
        assert runtime.unloaded == ["sha256:1"]


async def test_a_missing_model_is_its_own_error(run_dir: Path) -> None:
    async with fake_runtime(run_dir), open_client(run_dir) as client:
        with pytest.raises(ModelNotFound, match="no model nix"):
            async with client.lease("nix"):
                pass


async def test_waiting_for_a_lease_says_why(run_dir: Path) -> None:
    heard: list[object] = []
    async with (
        fake_runtime(run_dir),
        open_client(run_dir) as client,
        client.lease("m", on_wait=heard.append) as lease,
    ):
        assert (lease.n_ctx, lease.load_s) == (64, 0.5)
    assert [type(item).__name__ for item in heard] == ["Queued", "LoadProgress"]


async def test_generating_gives_chunks_and_then_how_it_ended(run_dir: Path) -> None:
    async with fake_runtime(run_dir), open_client(run_dir) as client, client.lease("m") as lease:
        items = [item async for item in lease.generate("x", n_predict=2)]
        assert [type(item).__name__ for item in items] == ["Chunk", "Chunk", "Finished"]
        assert await lease.tokenize("ab") == (1, 2)
        assert await lease.detokenize((1, 2)) == "ab"


async def test_leaving_the_lease_stops_generating_and_releases_it(run_dir: Path) -> None:
    async with fake_runtime(run_dir) as runtime, open_client(run_dir) as client:
        async with client.lease("m") as lease:
            await anext(lease.generate("x", n_predict=-1))
            assert (runtime.n_leases, runtime.n_generating) == (1, 1)
        await runtime.wait_idle()


async def test_closing_a_generation_stops_it_and_keeps_the_lease(run_dir: Path) -> None:
    async with fake_runtime(run_dir) as runtime, open_client(run_dir) as client, client.lease("m") as lease:
        async with lease.generate("x", n_predict=-1) as generation:
            await anext(generation)
        while runtime.n_generating:  # noqa: ASYNC110  # the cancel is on its way through a socket
            await trio.sleep(0.005)
        assert runtime.n_leases == 1


async def test_the_synchronous_face_does_the_same(run_dir: Path) -> None:
    def use() -> list[str]:
        with SyncClient(run_dir) as client, client.lease("m") as lease:
            assert client.resolve("m") == SPEC
            assert client.models() == (SPEC,)
            assert client.waiting() == ()
            assert client.why("m").decisions == ("because",)
            assert client.devices() == ANSWERS[SubscribeDevices]
            assert lease.tokenize("ab") == (1, 2)
            endless = lease.generate("x", n_predict=-1)
            next(endless)
            endless.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator
            return [type(item).__name__ for item in lease.generate("x", n_predict=2)]

    async with fake_runtime(run_dir) as runtime:
        assert await trio.to_thread.run_sync(use) == ["Chunk", "Chunk", "Finished"]
        await runtime.wait_idle()


async def test_faults_come_out_of_the_synchronous_face(run_dir: Path) -> None:
    def use() -> None:
        with SyncClient(run_dir) as client:
            with pytest.raises(ModelNotFound):
                client.resolve("nix")
            with pytest.raises(ModelNotFound), client.lease("nix"):
                pass

    async with fake_runtime(run_dir):
        await trio.to_thread.run_sync(use)


def test_the_synchronous_face_says_when_no_runtime_is_up(run_dir: Path) -> None:
    with pytest.raises(PeerGone, match="no runtime is up"), SyncClient(run_dir):
        pass
