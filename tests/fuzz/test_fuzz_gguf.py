"""A slice of the fuzzing, short enough for every test run."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).with_name("fuzz_gguf.py")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_five_thousand_mutated_model_files_raise_nothing_but_model_errors(tmp_path: Path) -> None:
    command = [sys.executable, str(TARGET), "-runs=5000"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "NEW    cov:" in ended.stderr, "the fuzzer saw no coverage, so it only threw dice"
