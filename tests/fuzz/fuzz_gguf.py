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

import actors.runner._native  # lies in site-packages, where only the editable finder looks  # noqa: F401

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere
# atheris sees no coverage of what an editable install's finder loads; the sources lie in ROOT
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
IS_FUZZING = "FUZZ_GGUF_CHILD"

_INSTRUMENTED = ["actors.runner.gguf", "actors.runner.inspect", "kernels.dtype"]
with atheris.instrument_imports(include=_INSTRUMENTED):  # pyright: ignore[reportAttributeAccessIssue]  # untyped
    from actors.runner.gguf.check import FAMILIES
    from tests.unit.gguf_files import model_bytes
    from tests.unit.gguf_use import use


def main() -> int:
    """Make the corpus, fuzz in a child, remove the corpus; gives the child's exit status."""
    if IS_FUZZING in os.environ:
        atheris.Setup(sys.argv, use)
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
