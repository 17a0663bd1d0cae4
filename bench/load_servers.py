"""The servers that a load is put on: `runtime up` and `llama-server`, each with one model and 16 places."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.vocabulary import BenchError

UP_S = 120.0
MODEL = "load"
N_PARALLEL = 16
N_CTX = 2048  # that one request may use: more than the longest of a load
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers at a port of this machine."""

    name: str
    port: int


@contextmanager
def ours(model: Path, n_threads: int) -> Generator[Server]:
    """`runtime up` in a place of its own."""
    home = Path(tempfile.mkdtemp(prefix="load-"))
    port = free_port()
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "RUNTIME_"))}
    environ |= {
        "OLLAMA_HOST": f"{HOST}:{port}",
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NUM_PARALLEL": str(N_PARALLEL),
        "OLLAMA_CONTEXT_LENGTH": str(N_CTX),
        "RUNTIME_RUN_DIR": str(home / "run"),
        "RUNTIME_N_THREAD": str(n_threads),
        "RUNTIME_LOG_LEVEL": "error",
        "XDG_CONFIG_HOME": str(home),
    }
    runtime = [sys.executable, "-m", "actors.cli.main"]
    try:
        with _running([*runtime, "up"], environ):
            _wait(port, "/health")
            create = [*runtime, "create", MODEL, "-f", str(model)]
            subprocess.run(create, env=environ, check=True, capture_output=True)
            yield Server("ours", port)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def llama_server(program: Path, model: Path, n_threads: int) -> Generator[Server]:
    """llama.cpp's, with a cache that all places share, as ours has."""
    port = free_port()
    sizes = ["-t", str(n_threads), "-np", str(N_PARALLEL), "-c", str(N_PARALLEL * N_CTX)]
    with _running([str(program), "-m", str(model), *sizes, "--host", HOST, "--port", str(port)], os.environ):
        _wait(port, "/health")
        yield Server("llama-server", port)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(command: list[str], environ: Mapping[str, str]) -> Generator[None]:
    process = subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(port: int, path: str) -> None:
    """Until the server says that it is well.  BenchError when it never does."""
    deadline_s = time.monotonic() + UP_S
    while time.monotonic() < deadline_s:
        try:
            if httpx.get(f"http://{HOST}:{port}{path}", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise BenchError(f"no server answered at port {port} within {UP_S:.0f} s")
