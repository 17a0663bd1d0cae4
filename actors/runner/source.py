"""An open model file, and what is made from it for every layout: its tokenizer, its program."""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.check import check_without_merges
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.families import build_program
from actors.runner.models.hparams import Hparams
from actors.runner.reading import Identity, identity_of
from actors.runner.tokenizer.tokenizer import Tokenizer
from kernels.program import Program


class Source:
    """An open and checked model file.  Its tokenizer is made on a thread meanwhile."""

    def __init__(self, path: str) -> None:
        """ModelError for a bad file."""
        self.path = path
        with ExitStack() as undo:
            self.identity = file_identity(path)  # before: a file replaced meanwhile is then opened anew
            self.file = GGUFFile.open(Path(path))
            undo.callback(self.file.close)
            check_without_merges(self.file)
            undo.pop_all()
        self._program: tuple[CacheShape, Program] | None = None
        maker = ThreadPoolExecutor(1, "tokenizer")
        self._tokenizer = maker.submit(Tokenizer.from_metadata, self.file.metadata)
        maker.shutdown(wait=False)

    def is_of(self, path: str) -> bool:
        """Whether the file that lies there now is the open one."""
        return path == self.path and file_identity(path) == self.identity

    def has_tokenizer(self, timeout_s: float) -> bool:
        """Whether it is made, or cannot be, within this time."""
        return bool(wait([self._tokenizer], timeout_s).done)

    def tokenizer(self) -> Tokenizer:
        """Waits until it is made; ModelError where it cannot be."""
        return self._tokenizer.result()

    def program(self, hparams: Hparams, shape: CacheShape) -> Program:
        """The model's program over such a cache; the last one is kept, since layouts are tried by the dozen.

        ModelError, ShapeError as `build_program` raises them.
        """
        if self._program is None or self._program[0] != shape:
            self._program = shape, build_program(self.file, hparams, shape)
        return self._program[1]

    def close(self) -> None:
        """Give up the mapping."""
        self.file.close()


def file_identity(path: str) -> Identity:
    """Of the file at path; a missing one has none."""
    try:
        return identity_of(os.stat(path))
    except OSError:
        return ()
