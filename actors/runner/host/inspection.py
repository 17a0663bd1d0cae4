"""Reading a model file's header in a short-lived process: what crashes the reader crashes nothing else."""

import os
import subprocess
from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from actors.errors import ModelError, RequestError, RuntimeFault
from actors.faults import fault_from
from actors.inherited import child_environment
from actors.protocol import ErrorInfo, ModelInfo
from actors.runner.host.child import Tail, end, forward

INSPECT_S = 60.0  # a header takes a fraction of a second; a disk that must wake up, or the network, more
OUTPUT_MAX_BYTES = 48 << 20  # below a frame's 64 MiB: a header of 100 000 tensors is about 10 MiB
READ_BYTES = 256 << 10


async def inspect(command: Sequence[str], path: str) -> ModelInfo:
    """What the file at `path` says of itself.  Raises the reader's own fault, or ModelError."""
    if not path.startswith("/"):
        # also keeps a path from being read as an option
        raise RequestError(f"{path[:200]} is not an absolute path", where="inspect")
    output, words = bytearray(), Tail()
    with trio.move_on_after(INSPECT_S):
        exit_code = await _read(command, path, output, words)
        return _answer(path, exit_code, output, words)
    raise ModelError(
        f"reading the header of {path} took longer than {INSPECT_S:.0f} s",
        where="inspect",
        mend="look at the disk",
    )


async def _read(command: Sequence[str], path: str, output: bytearray, words: Tail) -> int:
    process = await trio.lowlevel.open_process(
        [*command, "inspect", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(os.environ),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(partial(_keep_words, process.stderr, words))
            while data := await process.stdout.receive_some(READ_BYTES):
                output += data
                if len(output) > OUTPUT_MAX_BYTES:
                    raise ModelError(
                        f"{path}: its header says more than {OUTPUT_MAX_BYTES >> 20} MiB", where="inspect"
                    )
            return await process.wait()
    finally:
        with trio.CancelScope(shield=True):  # bounded by the ladder
            await end(process)


async def _keep_words(stderr: trio.abc.ReceiveStream, words: Tail) -> None:
    while data := await stderr.receive_some(READ_BYTES):
        words.add(data)
        forward(data)


def _answer(path: str, exit_code: int, output: bytearray, words: Tail) -> ModelInfo:
    try:
        if exit_code == 0:
            return msgspec.json.decode(output, type=ModelInfo)
        fault: RuntimeFault = fault_from(msgspec.json.decode(output, type=ErrorInfo))
    except msgspec.DecodeError as exc:
        said = words.text().strip().rpartition("\n")[2] or str(exc)
        raise ModelError(
            f"{path}: the reader of its header ended with status {exit_code}: {said}", where="inspect"
        ) from exc
    raise fault
