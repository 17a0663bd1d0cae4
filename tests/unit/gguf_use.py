"""Reading model files: what the tests of the reader, the random tests and the fuzzer share."""

from pathlib import Path

import msgspec

from actors.errors import ModelError
from actors.runner.gguf.check import check_model
from actors.runner.gguf.reader import GGUFFile
from actors.runner.inspect import describe

VOCABULARIES = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"


def read(data: bytes) -> GGUFFile:
    """The file whose bytes these are."""
    return GGUFFile(memoryview(data), "tiny.gguf")


def use(data: bytes) -> None:
    """Read, describe and check one file; a ModelError is an answer, anything else is a bug."""
    try:
        file = read(data)
        for name, info in file.tensors.items():
            assert len(file.tensor_bytes(name)) == info.n_bytes
        msgspec.json.encode(describe(file))
        check_model(file)
    except ModelError:
        pass
