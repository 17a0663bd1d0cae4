"""A runner that does what its model file says: `python -m tests.actors.fake_runner --id ID | inspect PATH`.

The "model" is a JSON object; every field has a default, see `Script`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import trio

from actors.actor import main, not_understood, stay_connected
from actors.config import Config
from actors.errors import ModelError
from actors.faults import info_from
from actors.link import Link, Replies
from actors.protocol import (
    Alloc,
    Close,
    Commit,
    DeviceMemory,
    Fit,
    Keep,
    LoadProgress,
    MemoryItem,
    MemoryReport,
    ModelInfo,
    Register,
    Request,
)


class Script(msgspec.Struct, forbid_unknown_fields=True):
    """How the fake behaves."""

    n_layer: int = 2
    weight_bytes: int = 1 << 20  # of each layer
    cache_bytes_per_ctx: int = 0  # of each layer
    n_ctx_train: int = 8192
    stall_at: float = -1.0  # commit stops talking after this share
    crash_at: float = -1.0  # commit dies after this share, with these last words
    last_words: str = ""
    n_alloc_failures: int = 0  # allocs that fail before one works
    refuse: str = ""  # Fit is answered with ModelError
    gate: str = ""  # commit waits, telling progress, until this file exists
    count: str = ""  # a line is added to this file at each start of a commit
    ignore_sigterm: bool = False


def script_of(path: str) -> Script:
    """The script in the model file."""
    return msgspec.json.decode(Path(path).read_bytes(), type=Script)


def note(path: str, line: str) -> None:
    """Add a line to a file."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def report_of(request: Fit | Alloc, script: Script, *, allocated: bool) -> MemoryReport:
    """Sizes as the script says; layers nobody places are on the CPU."""
    n_ctx = min(request.options.n_ctx or 4096, script.n_ctx_train)
    failure = ""
    if isinstance(request, Alloc) and script.n_alloc_failures > 0:
        script.n_alloc_failures -= 1
        failure = "cpu: graph: 64 MiB could not be allocated"

    def item(size: int) -> MemoryItem:
        return MemoryItem(
            size, size if allocated and not failure else 0, "allocated" if allocated else "planned"
        )

    elsewhere = {part.device: part.layers for part in request.placement if part.device != "cpu"}
    taken = {layer for layers in elsewhere.values() for layer in layers}
    layers_of = elsewhere | {"cpu": tuple(i for i in range(script.n_layer + 1) if i not in taken)}
    devices = tuple(
        DeviceMemory(
            id=device,
            name=device,
            weights=tuple(item(script.weight_bytes * (i in layers)) for i in range(script.n_layer + 1)),
            cache=tuple(
                item(script.cache_bytes_per_ctx * n_ctx * (i in layers and i < script.n_layer))
                for i in range(script.n_layer + 1)
            ),
            graph=item(0),
            overhead=item(0),
        )
        for device, layers in layers_of.items()
    )
    return MemoryReport(
        devices=devices,
        input_weights=item(0),
        n_layer=script.n_layer,
        n_ctx=n_ctx,
        n_ctx_train=script.n_ctx_train,
        n_batch=512,
        n_parallel=1,
        failure=failure,
    )


class FakeRunner:
    """Fit, Alloc, Commit, Close and Register; generates nothing."""

    def __init__(self, config: Config, runner_id: str) -> None:
        self._config = config
        self._runner_id = runner_id
        self._script = Script()
        self._allocated: Alloc | None = None
        self._holds = False
        self._is_ready = False
        self.keep: Keep | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await stay_connected(
            self._config.socket_address("scheduler"), f"runner-{self._runner_id}", self._register
        )

    async def _register(self, link: Link) -> None:
        held = self._allocated if self._is_ready else None
        message = Register(
            runner_id=self._runner_id,
            pid=os.getpid(),
            address=self._config.socket_address(f"runner-{self._runner_id}"),
            model=held.model if held else None,
            options=held.options if held else None,
            report=report_of(held, self._script, allocated=True) if held else None,
            keep=self.keep,
        )
        async with link.request(message) as items:
            async for item in items:
                raise AssertionError(item)

    def gauges(self) -> dict[str, float]:
        return {}

    def held_bytes(self) -> dict[str, int]:
        """What it has allocated, by device."""
        if self._allocated is None or not self._holds:
            return {}
        report = report_of(
            self._allocated, msgspec.structs.replace(self._script, n_alloc_failures=0), allocated=True
        )
        return {
            device.id: sum(item.measured_bytes for item in (*device.weights, *device.cache))
            for device in report.devices
        }

    async def handle(self, request: Request, replies: Replies) -> None:
        match request:
            case Fit():
                script = script_of(request.model.path)
                if script.refuse:
                    raise ModelError(script.refuse, where="fake")
                await replies.send(report_of(request, script, allocated=False))
            case Alloc():
                if self._allocated is None:
                    self._script = script_of(request.model.path)
                    if self._script.ignore_sigterm:
                        signal.signal(signal.SIGTERM, signal.SIG_IGN)
                report = report_of(request, self._script, allocated=True)
                self._allocated = request
                self._holds = not report.failure
                await replies.send(report)
            case Commit():
                await self._commit(replies)
            case Close():
                self._holds = False
            case Keep():
                self.keep = request
            case _:
                raise not_understood(request)

    async def _commit(self, replies: Replies) -> None:
        assert self._allocated is not None
        script = self._script
        if script.count:
            note(script.count, self._allocated.model.name)
        for percent in range(0, 101, 1):
            share = percent / 100
            await replies.send(LoadProgress(phase="reading", done_bytes=percent, total_bytes=100))
            if 0 <= script.crash_at <= share:
                sys.stderr.write(script.last_words)
                sys.stderr.flush()
                os._exit(3)
            if 0 <= script.stall_at <= share:
                await trio.sleep_forever()
        while script.gate and not os.path.exists(script.gate):  # noqa: ASYNC240  # one call on tmpfs
            await replies.send(LoadProgress(phase="finalising", done_bytes=100, total_bytes=100))
            await trio.sleep(0.02)
        self._is_ready = True
        await replies.send(
            report_of(self._allocated, Script(**msgspec.structs.asdict(script)), allocated=True)
        )


def inspect(path: str) -> int:
    """As `python -m actors.runner inspect`: ModelInfo, or ErrorInfo and a status, on standard output."""
    content = json.loads(Path(path).read_text())
    if "crash" in content:
        sys.stderr.write(content["crash"])
        return 7
    if "error" in content:
        sys.stdout.buffer.write(msgspec.json.encode(info_from(ModelError(content["error"], where="gguf"))))
        return 1
    if "flood" in content:
        while True:
            sys.stdout.buffer.write(b" " * (1 << 20))
    info = ModelInfo(architecture="fake", metadata={}, tensors=(), n_parameters=1, file_type="F32")
    sys.stdout.buffer.write(msgspec.json.encode(info))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "inspect":
        raise SystemExit(inspect(sys.argv[2]))
    runner_id = sys.argv[2]
    raise SystemExit(main(f"runner-{runner_id}", lambda config: FakeRunner(config, runner_id)))
