"""What is done with the header of any file that somebody names: shared by the fuzzer and the random tests."""

import msgspec

from actors.errors import ModelError
from actors.runner.gguf.check import check_model
from actors.runner.gguf.reader import GGUFFile
from actors.runner.inspect import describe


def use(data: bytes) -> None:
    """Read, describe and check one file; a ModelError is an answer, anything else is a bug."""
    try:
        file = GGUFFile(memoryview(data), "hostile.gguf")
        for name, info in file.tensors.items():
            assert len(file.tensor_bytes(name)) == info.n_bytes
        msgspec.json.encode(describe(file))
        check_model(file)
    except ModelError:
        pass
