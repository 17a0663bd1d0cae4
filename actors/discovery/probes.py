"""Probe processes from outside: started, listened to, ended.  What a driver does there harms nobody else."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec
import trio

from actors.discovery.absence import why_absent
from actors.errors import RuntimeFault
from actors.inherited import child_environment
from actors.protocol import Device, FreeMemory, LibraryReport

log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-m", "actors.runner")
ANSWER_MAX_BYTES: Final = 1 << 20
"""Of one answer; a machine with a thousand devices says less."""
WORDS_BYTES: Final = 2 << 10
"""Of standard error, kept as last words."""
READ_BYTES: Final = 64 << 10
END_S: Final = 5.0
"""From SIGKILL to the exit; longer means that the kernel holds the process inside a driver."""
LAST_WORDS_S: Final = 1.0
"""After the end of its answers: a grandchild may hold the pipe open for ever."""
CHECKS_MAX: Final = 8
"""Devices of one library that are checked at once: each check imports all of CuPy."""

T = TypeVar("T")

_decode_report = msgspec.json.Decoder(LibraryReport).decode
_decode_memory = msgspec.json.Decoder(tuple[FreeMemory, ...]).decode


class ProbeFailed(RuntimeFault):
    """A probe crashed, hung or spoke rubbish; the message says which, with its last words."""

    code = "probe_failed"


class Probes:
    """Starts probes with this command and gives each `timeout_s` for an answer.

    `absent` says why a library's devices cannot be here, or None: then no probe is started.
    """

    def __init__(
        self, command: Sequence[str], timeout_s: float, absent: Callable[[str], str | None] = why_absent
    ) -> None:
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._absent = absent
        self._files = trio.CapacityLimiter(1)

    async def look(self, library: str) -> LibraryReport:
        """What the library finds, each device checked.  A probe that fails gives a report that says so."""
        reason = await trio.to_thread.run_sync(self._absent, library, limiter=self._files)
        if reason is not None:
            return LibraryReport(library, "none", reason=reason)
        try:
            report = await self._ask(library)
        except ProbeFailed as fault:
            return LibraryReport(library, "failed", reason=fault.message)
        return await self._check_devices(report) if report.unchecked else report

    async def watch(self, library: str, use: Callable[["Watch"], Awaitable[None]]) -> None:
        """Run a process that measures free memory for as long as `use` uses it; ProbeFailed when it fails."""

        async def use_process(running: Running) -> None:
            await use(Watch(running, self._timeout_s))

        await self._run((library, "--watch"), use_process)

    async def _ask(self, library: str, *arguments: str) -> LibraryReport:
        async def answer(running: Running) -> LibraryReport:
            return await running.answer(_decode_report, self._timeout_s)

        return await self._run((library, *arguments), answer)

    async def _check_devices(self, report: LibraryReport) -> LibraryReport:
        """Each in a process of its own, side by side: one that crashes costs its device only."""
        devices = list(report.devices)
        limiter = trio.CapacityLimiter(CHECKS_MAX)

        async def check(index: int) -> None:
            async with limiter:
                devices[index] = await self._check(devices[index])

        async with trio.open_nursery() as nursery:
            for index, device in enumerate(devices):
                if device.id in report.unchecked:
                    nursery.start_soon(check, index)
        return msgspec.structs.replace(report, devices=tuple(devices), unchecked=())

    async def _check(self, device: Device) -> Device:
        try:
            report = await self._ask(device.library, "--check", device.id)
        except ProbeFailed as fault:
            return _refused(device, fault.message)
        checked = next((found for found in report.devices if found.id == device.id), None)
        return (
            _refused(device, report.reason or "its check named other devices") if checked is None else checked
        )

    async def _run(self, arguments: Sequence[str], use: Callable[["Running"], Awaitable[T]]) -> T:
        """Use a probe process; it is gone when this is over."""
        name = f"the {arguments[0]} probe"
        try:
            process = await trio.lowlevel.open_process(
                [*self._command, "--probe", *arguments],
                stdin=subprocess.PIPE,  # its end tells the probe that we are gone
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=child_environment(os.environ),
            )
        except OSError as exc:  # no memory, no descriptors, too many processes: it may pass
            raise ProbeFailed(f"{name} cannot be started: {exc.strerror}", where="discovery") from exc
        running = Running(process, name)
        try:
            return await running.use(use)
        finally:
            with trio.CancelScope(shield=True):  # bounded by END_S
                await running.end()


class Running:
    """One probe process; get one from `Probes`."""

    def __init__(self, process: trio.Process, name: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._name = process, name
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._heard = bytearray()
        self._words = bytearray()
        self._words_ended = trio.Event()

    async def use(self, use: Callable[["Running"], Awaitable[T]]) -> T:
        """What `use` gives; standard error is read meanwhile, or a chatty driver blocks on a full pipe."""
        outcome: T | ProbeFailed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            try:
                outcome = await use(self)
            except ProbeFailed as fault:  # carried out by hand: the nursery would make a group of it
                outcome = fault
            nursery.cancel_scope.cancel()
        if isinstance(outcome, ProbeFailed):
            raise outcome
        return outcome

    async def _listen(self) -> None:
        async for data in self._stderr:
            self._words += data
            del self._words[:-WORDS_BYTES]
        self._words_ended.set()

    async def ask(self) -> None:
        """Send the line that asks a watching probe."""
        try:
            await self._stdin.send_all(b"\n")
        except trio.BrokenResourceError as exc:
            raise await self._ended() from exc

    async def answer(self, decode: Callable[[bytes], T], timeout_s: float) -> T:
        """The next line, decoded; ProbeFailed when it does not come or is none."""
        with trio.move_on_after(timeout_s):
            line = await self._line()
            try:
                return decode(line)
            except msgspec.DecodeError as exc:
                raise self._failed(f"spoke rubbish: {line[:80]!r}") from exc
        raise self._failed(f"did not answer within {timeout_s:g} s")

    async def end(self) -> None:
        """SIGKILL: a probe has nothing to tidy up.  Always reaped, unless the kernel holds it."""
        if self._process.returncode is None:
            self._process.kill()
        with trio.move_on_after(END_S) as waiting:
            await self._process.wait()
        if waiting.cancelled_caught:
            log.error("%s (process %d) does not end: a driver holds it", self._name, self._process.pid)
        for pipe in (self._stdin, self._stdout, self._stderr):
            await trio.aclose_forcefully(pipe)

    async def _line(self) -> bytes:
        while b"\n" not in self._heard:
            data = await self._stdout.receive_some(READ_BYTES)
            if not data:
                raise await self._ended()
            self._heard += data
            if len(self._heard) > ANSWER_MAX_BYTES:
                raise self._failed(f"said more than {ANSWER_MAX_BYTES >> 20} MiB")
        line, _, self._heard = self._heard.partition(b"\n")
        return bytes(line)

    async def _ended(self) -> ProbeFailed:
        """Standard output is closed: how did it end, and with which words?"""
        with trio.move_on_after(LAST_WORDS_S):
            await self._process.wait()
            await self._words_ended.wait()
        code = self._process.returncode
        if code is None:
            return self._failed("closed its output without an answer")
        how = f"crashed by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"
        said = self._words.decode(errors="replace").strip().rpartition("\n")[2]
        return self._failed(f"{how}: {said}" if said else how)

    def _failed(self, what: str) -> ProbeFailed:
        return ProbeFailed(f"{self._name} {what}", where="discovery")


class Watch:
    """A probe that measures free memory when asked."""

    def __init__(self, running: Running, timeout_s: float) -> None:
        self._running, self._timeout_s = running, timeout_s

    async def measure(self) -> tuple[FreeMemory, ...]:
        """Of all devices now; ProbeFailed when it does not answer, and then it never will."""
        await self._running.ask()
        return await self._running.answer(_decode_memory, self._timeout_s)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # some real-time signals have no name
        return f"signal {number}"


def _refused(device: Device, reason: str) -> Device:
    return msgspec.structs.replace(device, is_usable=False, reason=reason)
