"""`python -m tests.system.soak SECONDS [SEED]`: the real runtime under random use, and whole afterwards.

Clients ask several small models with changing options, hang up, unload and preload; now and then a runner or
the scheduler is killed.  Every answer must be the model's own or an error in words; in the end no process,
socket, lease or byte may be left.
"""

import hashlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from actors.supervisor.policy import RestartPolicy
from tests.golden.tiny import VARIANTS, weights, write
from tests.system.conftest import Runtime, started

N_CLIENTS = 4
MODELS = ("llama", "qwen2", "qwen3", "llama-yarn")
MAX_LOADED = "2"  # fewer than there are models: something is evicted all the time
N_CTX = (64, 128)
ANSWER_S = 60.0  # a ceiling for broken builds: loads and answers here take milliseconds
KILL_EVERY_S = 1.5
POLICY = RestartPolicy()
SCHEDULER_EVERY_S = 1.5 * POLICY.window_s / POLICY.max_deaths  # oftener, and its supervisor gives up, rightly
LEFT_S = 30.0
LASTING = ("gateway", "host", "discovery")  # not killed here: what they open they must close
FILES_SPARE = 4  # connections that are being made or kept alive at the moment of looking
SOCKETS = {"discovery.sock", "gateway.sock", "host.sock", "scheduler.sock"}


def add_models(runtime: Runtime) -> None:
    """Tiny models of several families, by the way a user takes."""
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            path = Path(folder, "model.gguf")
            write(path, VARIANTS[name], weights(VARIANTS[name]))
            data = path.read_bytes()
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            runtime.http.post(f"/api/blobs/{digest}", content=data).raise_for_status()
            body = {"model": name, "files": {"model.gguf": digest}, "stream": False}
            runtime.http.post("/api/create", json=body).raise_for_status()


class Soak:
    """What all clients share."""

    def __init__(self, runtime: Runtime, seconds: float, seed: int) -> None:
        self._runtime = runtime
        self._ends_s = time.monotonic() + seconds
        self._seed = seed
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, int], str] = {}  # greedy, by model and context
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        """Until the time is over; AssertionError with what went wrong."""
        threads = [threading.Thread(target=self._client, args=(n,)) for n in range(N_CLIENTS)]
        threads.append(threading.Thread(target=self._killer))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.wrong, self.wrong[:5]
        self._until_nothing_is_left()

    def _client(self, number: int) -> None:
        draw = random.Random(self._seed * 100 + number)
        with httpx.Client(
            base_url=self._runtime.url, timeout=ANSWER_S, trust_env=False, verify=False
        ) as http:
            while self._goes_on():
                step = draw.choices((self._ask, self._hang_up, self._unload, self._look), (6, 2, 1, 1))[0]
                try:
                    step(http, draw)
                except Exception as exc:  # noqa: BLE001  # whatever it is, it fails the soak
                    self._is_wrong(f"{step.__name__}: {exc!r}")

    def _goes_on(self) -> bool:
        """Until the time is over, and on a slow machine until there was something to judge by."""
        is_over = time.monotonic() >= self._ends_s and self.counts["answers"] and self.counts["kills"]
        return not is_over and not self.wrong

    def _ask(self, http: httpx.Client, draw: random.Random) -> None:
        model, n_ctx = draw.choice(MODELS), draw.choice(N_CTX)
        keep_alive = draw.choice((None, 0, "5m", 0.2))
        response = http.post("/api/generate", json=self._body(model, n_ctx, keep_alive, stream=False))
        answer = response.json()
        if response.status_code != 200:
            self._refused(response.status_code, answer)
            return
        with self._lock:
            self.counts["answers"] += 1
            expected = self._answers.setdefault((model, n_ctx), answer["response"])
        if answer["response"] != expected:
            self._is_wrong(f"{model} said {answer['response']!r}, before {expected!r}")

    def _hang_up(self, http: httpx.Client, draw: random.Random) -> None:
        body = self._body(draw.choice(MODELS), draw.choice(N_CTX), None, stream=True)
        n_lines = draw.randrange(4)
        with http.stream("POST", "/api/generate", json=body) as response:
            for n, _ in enumerate(response.iter_lines()):
                if n >= n_lines:
                    break
        self.counts["hang-ups"] += 1

    def _unload(self, http: httpx.Client, draw: random.Random) -> None:
        response = http.post("/api/generate", json={"model": draw.choice(MODELS), "keep_alive": 0})
        assert response.status_code == 200, response.text
        self.counts["unloads"] += 1

    def _look(self, http: httpx.Client, draw: random.Random) -> None:
        path = draw.choice(("/api/ps", "/metrics", "/api/tags"))
        response = http.get(path)
        if response.status_code != 200:
            self._refused(response.status_code, response.json())
        self.counts["looks"] += 1

    def _body(self, model: str, n_ctx: int, keep_alive: object, *, stream: bool) -> dict[str, Any]:
        options = {"num_ctx": n_ctx, "num_predict": 8, "temperature": 0, "num_batch": 32}
        body: dict[str, Any] = {
            "model": model, "prompt": "ab", "raw": True, "stream": stream, "options": options
        }  # fmt: skip
        return body if keep_alive is None else {**body, "keep_alive": keep_alive}

    def _refused(self, status: int, answer: dict[str, Any]) -> None:
        """An error must say something: that is all that can be asked while runners are being killed."""
        if status < 500 or len(str(answer.get("error", ""))) < 10:
            self._is_wrong(f"{status}: {answer}")
        self.counts[f"refusals {status}"] += 1

    def _is_wrong(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)

    def _killer(self) -> None:
        """At random, but never twice without an answer between: a slow machine would only restart."""
        draw = random.Random(self._seed)
        n_answers, spared_until_s = 0, 0.0
        while self._goes_on():
            time.sleep(draw.uniform(0.5, 1.5) * KILL_EVERY_S)
            if self.counts["answers"] == n_answers:
                continue
            n_answers = self.counts["answers"]
            with suppress(Exception):  # the scheduler may be down already, or the runner gone
                victims, scheduler = self._runtime.runner_pids(), self._runtime.pid("scheduler")
                if time.monotonic() >= spared_until_s:
                    victims.append(scheduler)
                victim = draw.choice(victims)
                if victim == scheduler:
                    spared_until_s = time.monotonic() + SCHEDULER_EVERY_S
                os.kill(victim, signal.SIGKILL)
                self.counts["kills"] += 1

    def _until_nothing_is_left(self) -> None:
        runtime = self._runtime

        def is_unloaded() -> bool:
            for model in MODELS:
                runtime.http.post("/api/generate", json={"model": model, "keep_alive": 0}).raise_for_status()
            gauges = runtime.stats("scheduler").gauges
            held = {name: n for name, n in gauges.items() if not name.endswith("_total")}
            return not any(held.values()) and not runtime.runner_pids()

        runtime.wait_until(is_unloaded, LEFT_S)
        runtime.wait_until(lambda: runtime.stats("gateway").gauges["requests_in_flight"] == 0, LEFT_S)
        assert runtime.stats("host").gauges["runners_starting"] == 0
        assert {path.name for path in runtime.run_dir.glob("*.sock")} == SOCKETS


def soak(seconds: float, seed: int) -> Counter[str]:
    """One run in a runtime of its own; what was done, counted."""
    with started(OLLAMA_MAX_LOADED_MODELS=MAX_LOADED) as runtime:
        add_models(runtime)
        before = {actor: _open_files(runtime.pid(actor)) for actor in LASTING}
        made = Soak(runtime, seconds, seed)
        made.run()
        for actor in LASTING:
            _until_no_more_open(runtime, actor, before[actor])
        return made.counts


def _until_no_more_open(runtime: Runtime, actor: str, before: Counter[str]) -> None:
    """The links between actors that were restarted come back a moment later, and idle ones are closed."""
    after = Counter[str]()

    def is_whole() -> bool:
        nonlocal after
        after = _open_files(runtime.pid(actor))
        return after.total() <= before.total() + FILES_SPARE

    try:
        runtime.wait_until(is_whole, LEFT_S)
    except AssertionError as exc:
        raise AssertionError(f"{actor} has files open: {after - before} more than {before}") from exc


def _open_files(pid: int) -> Counter[str]:
    """Open files by kind: "socket", "pipe", a path."""
    found = Counter[str]()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # the folder's own, or one closed meanwhile
            found[os.readlink(f"/proc/{pid}/fd/{name}").partition(":")[0]] += 1
    return found


if __name__ == "__main__":
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    sys.stdout.write(f"seed {seed}, {seconds:g} s\n")
    sys.stdout.flush()
    sys.stdout.write(f"{dict(soak(seconds, seed))}\n")
