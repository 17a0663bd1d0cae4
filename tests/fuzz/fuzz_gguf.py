"""Fuzz the GGUF reader and the model checks: only ModelError may come out, quickly and with little memory.

    python tests/fuzz/fuzz_gguf.py -runs=20000
    python tests/fuzz/fuzz_gguf.py -max_total_time=60

Options are libFuzzer's.  The corpus is made anew from hand-made sound files in a temporary directory; a
corpus directory given on the command line is used as well, and grows.  What breaks is left as `crash-*` in
the working directory; give its name as the argument to run it again.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris
import msgspec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere
IS_FUZZING = "FUZZ_GGUF_CHILD"

_INSTRUMENTED = ["actors.runner.gguf", "kernels.dtype"]
with atheris.instrument_imports(include=_INSTRUMENTED):  # pyright: ignore[reportAttributeAccessIssue]  # untyped
    from actors.errors import ModelError
    from actors.runner.gguf.check import FAMILIES, check_model
    from actors.runner.gguf.reader import GGUFFile
    from actors.runner.gguf.summary import summary
    from tests.unit.gguf_files import model_bytes


def use_one_file(data: bytes) -> None:
    """Read, describe and check one file."""
    try:
        file = GGUFFile(memoryview(data), "fuzzed.gguf")
        for name, info in file.tensors.items():
            assert len(file.tensor_bytes(name)) == info.n_bytes
        msgspec.json.encode(summary(file))
        check_model(file)
    except ModelError:
        pass


def main() -> int:
    """Make the corpus, fuzz in a child, remove the corpus; gives the child's exit status."""
    if IS_FUZZING in os.environ:
        atheris.Setup(sys.argv, use_one_file)
        atheris.Fuzz()
    # libFuzzer leaves without unwinding, so that somebody else has to clean up
    with tempfile.TemporaryDirectory(prefix="fuzz-gguf-") as folder:
        options = ["-max_len=4096", "-timeout=10", "-rss_limit_mb=1024", *sys.argv[1:]]
        if not any(Path(option).is_file() for option in sys.argv[1:]):
            for arch in FAMILIES:
                (Path(folder) / arch).write_bytes(model_bytes(arch))
            options.append(folder)
        command = [sys.executable, __file__, *options]
        return subprocess.run(command, env={**os.environ, IS_FUZZING: "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
