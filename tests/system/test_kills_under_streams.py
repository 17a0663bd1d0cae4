"""A runner that is killed under many streams, at any moment: none is lost, and none says anything else.

KILLS: how often; `make kill-campaign` sets it.
"""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.system.conftest import MODEL, Runtime, started

N_STREAMS = 32
N_PREDICT = 40
KILLS = int(os.environ.get("KILLS", "2"))
TEXT = "the runtime loads a model and its layers live where memory is free while streams go on"


@pytest.fixture(scope="module")
def crowded() -> Iterator[Runtime]:
    with started(RUNTIME_N_PARALLEL=str(N_STREAMS), RUNTIME_N_CTX="512") as up:
        yield up


def request_of(stream: int) -> dict[str, Any]:
    """Greedy or sampled; prompts of some batches in all, some of which begin alike."""
    rng = random.Random(stream // 2)
    prompt = " ".join(rng.choices(TEXT.split(), k=rng.choice([5, 60, 150])))
    options = {"num_predict": N_PREDICT, "repeat_penalty": 0.5, "seed": stream}
    options |= {"temperature": 0} if stream % 3 == 0 else {"temperature": 3.0, "top_k": 0, "top_p": 1.0}
    return {"model": MODEL, "prompt": prompt, "raw": True, "options": options}


def say_all(runtime: Runtime, on_part: Callable[[], None]) -> list[str]:
    """All streams at once; `on_part` is called for each part of each, from many threads."""

    def say(stream: int) -> str:
        parts, reason = list[str](), ""
        with runtime.http.stream("POST", "/api/generate", json=request_of(stream)) as response:
            for line in response.iter_lines():
                part = json.loads(line)
                assert "error" not in part, part
                parts.append(part["response"])
                reason = part.get("done_reason", "")
                on_part()
        assert reason in {"stop", "length"}
        return "".join(parts)

    with ThreadPoolExecutor(N_STREAMS) as pool:
        return list(pool.map(say, range(N_STREAMS)))


def test_no_stream_is_lost_or_different(crowded: Runtime) -> None:
    lock, rng = threading.Lock(), random.Random(1)
    n_parts, dies_at = 0, -1

    def count() -> None:
        nonlocal n_parts
        with lock:
            n_parts += 1
            if n_parts == dies_at:
                (runner,) = crowded.runner_pids()
                os.kill(runner, signal.SIGKILL)

    undisturbed = say_all(crowded, count)
    n_whole = n_parts
    assert len(set(undisturbed)) > N_STREAMS // 2
    for kill in range(KILLS):
        # the first part comes while other prompts are still processed
        n_parts, dies_at = 0, rng.choice([1, rng.randrange(1, n_whole)])
        assert say_all(crowded, count) == undisturbed, f"kill {kill} at part {dies_at} of {n_whole}"
    assert crowded.stats("gateway").gauges["streams_resumed_total"] >= KILLS
