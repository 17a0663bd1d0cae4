"""llama-server from spawn to the first token of an HTTP completion."""

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path

from bench.case import Skipped
from bench.process_memory import anon_bytes
from bench.served import DEADLINE_S, PROMPT, START_N_CTX

POLL_S = 0.002
HOST = "127.0.0.1"


def first_token(server: Path, model: Path, n_threads: int) -> tuple[float, int]:
    """(seconds, bytes of anonymous memory afterwards).  Skipped when the server ends or never answers."""
    port = _free_port()
    sizes = ["-t", str(n_threads), "-c", str(START_N_CTX), "-np", "1"]
    command = [server, "-m", model, *sizes, "--host", HOST, "--port", str(port)]
    began_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _completes(port):
            if process.poll() is not None:
                raise Skipped(f"llama-server ended with code {process.returncode}")
            if time.perf_counter() - began_s > DEADLINE_S:
                raise Skipped(f"llama-server gave no token in {DEADLINE_S:.0f} s")
            time.sleep(POLL_S)
        return time.perf_counter() - began_s, anon_bytes(process.pid)
    finally:
        process.kill()
        process.wait()


def _completes(port: int) -> bool:
    """Ask for one token; False while nobody listens or the model is not there yet."""
    body = json.dumps({"prompt": PROMPT, "n_predict": 1, "temperature": 0})
    connection = http.client.HTTPConnection(HOST, port, timeout=DEADLINE_S)
    try:
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status == http.client.OK
    except (ConnectionError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
