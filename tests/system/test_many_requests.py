"""Many short requests, some given up at any moment: nothing of them stays.

REQUESTS: how many; `make request-campaign` sets it.
"""

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.system.conftest import MODEL, Runtime, started

N_CLIENTS = 8
REQUESTS = int(os.environ.get("REQUESTS", "400"))
GROWTH_KIB = 16 << 10  # of a process: arenas of its allocator, not something of each request
ACTORS = ("gateway", "scheduler", "host", "discovery")


class Held(NamedTuple):
    """What a process holds."""

    n_files: int
    anonymous_kib: int


@pytest.fixture(scope="module")
def busy() -> Iterator[Runtime]:
    with started(RUNTIME_N_CTX="512") as up:
        yield up


def held_by(pid: int) -> Held:
    folder = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Held(len(list((folder / "fd").iterdir())), int(status["RssAnon"].split()[0]))


def ask(http: httpx.Client, seed: int) -> None:
    rng = random.Random(seed)
    options = {"num_predict": rng.randrange(1, 9), "seed": seed, "temperature": 2.0, "top_k": 0}
    body = {"model": MODEL, "prompt": "word " * rng.randrange(1, 40), "raw": True, "options": options}
    n_wanted = rng.choice([99, 99, 0, 1, 3])  # parts after which this client hangs up
    with http.stream("POST", "/api/generate", json=body) as response:
        assert response.status_code == 200
        for n_parts, line in enumerate(response.iter_lines(), 1):
            assert "error" not in json.loads(line)
            if n_parts > n_wanted:
                break


def ask_many(runtime: Runtime, seeds: range) -> dict[str, int]:
    """The pids of all actors, by name, when all is over and nothing is under way."""
    with (
        httpx.Client(base_url=runtime.url, timeout=60, trust_env=False, verify=False) as http,
        ThreadPoolExecutor(N_CLIENTS) as pool,
    ):
        for answered in [pool.submit(ask, http, seed) for seed in seeds]:
            answered.result()
    runner = next(runtime.run_dir.glob("runner-*.sock")).stem

    def is_quiet() -> bool:
        counts = runtime.stats(runner).gauges
        n_held = counts["sequences_active"] + counts["sequences_queued"] + counts["cache_pages_held"]
        return n_held == 0 and runtime.stats("gateway").gauges["requests_in_flight"] == 0

    runtime.wait_until(is_quiet, 10)
    return {name: runtime.pid(name) for name in (*ACTORS, runner)}


def test_memory_files_pages_and_places_stay_as_they_are(busy: Runtime) -> None:
    pids = ask_many(busy, range(REQUESTS // 4))
    before = {name: held_by(pid) for name, pid in pids.items()}
    assert ask_many(busy, range(REQUESTS // 4, REQUESTS)) == pids
    for name, pid in pids.items():  # a probe or a closing connection may still hold some for a moment
        busy.wait_until(lambda pid=pid, name=name: held_by(pid).n_files <= before[name].n_files, 20)
    grown = {name: held_by(pid).anonymous_kib - before[name].anonymous_kib for name, pid in pids.items()}
    assert max(grown.values()) < GROWTH_KIB, grown
    print(f"grown by KiB: {grown}")
