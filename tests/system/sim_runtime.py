"""The real runtime beside a simulated machine: real processes, and devices whose memory the test moves."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from actors.protocol import (
    Device,
    Devices,
    Explain,
    Explanation,
    ListLoaded,
    LoadDecision,
    Loaded,
    LoadedModel,
    LoadOptions,
    LoadPlan,
    MeasureDevices,
    MemoryReport,
    ModelSpec,
    PlanLoad,
    Resolve,
)
from actors.scheduler.layout import GPU_RESERVE_BYTES
from kernels.sim.machine import SimMachine
from kernels.sim.state import ProbeScript
from tests.golden.tiny import Tiny, weights, write
from tests.system.conftest import Runtime, started

A, B, CPU = "sim:0", "sim:1", "cpu"
MIB = 1 << 20
ROOT = Path(__file__).parents[2]
N_LAYER = 8
LAYER_BYTES = 5 * MIB  # a little more than one takes: enough for a device to be worth its copies
ALL_BYTES = 60 * MIB  # room for all of it, with context and compute buffer
BESIDE_BYTES = 3 * MIB  # context and compute buffer of a device
SETTLED_S = 20.0  # a ceiling for broken builds
LASTING = {"discovery.sock", "gateway.sock", "host.sock", "scheduler.sock"}
COMMAND_S = 60.0
OPTIONS: Mapping[str, Any] = {"num_predict": 8, "temperature": 0, "num_batch": 32, "num_ctx": 64}
# favours its own words, so that it does not end by itself
LONG: Mapping[str, Any] = {"num_predict": 110, "num_ctx": 128, "repeat_penalty": 0.3, "repeat_last_n": 32}


def room_for(n_bytes: int) -> int:
    """A device's size so that layers and what goes with them may take so much of it."""
    return GPU_RESERVE_BYTES + n_bytes


@cache
def model_data(seed: int) -> bytes:
    """A GGUF file of about 40 MB: eight layers that are worth a device."""
    tiny = Tiny("llama", n_embd=256, n_ff=1536, n_layer=N_LAYER, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        write(path, tiny, weights(tiny))
        return path.read_bytes()


@dataclass
class SimRuntime:
    """A runtime, its machine, and questions to them."""

    runtime: Runtime
    machine: SimMachine

    def add_model(self, name: str, seed: int = 1) -> None:
        """A model of the library, by the way a user takes."""
        data = model_data(seed)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        http = self.runtime.http
        http.post(f"/api/blobs/{digest}", content=data).raise_for_status()
        body = {"model": name, "files": {"model.gguf": digest}, "stream": False}
        http.post("/api/create", json=body).raise_for_status()

    def ask(self, model: str, **options: object) -> httpx.Response:
        """One request, answered or refused."""
        return self.runtime.http.post("/api/generate", json=body(model, **options))

    def answer(self, model: str, **options: object) -> list[int]:
        """The tokens of prompt and greedy answer: a tiny model's text hides most of what differs."""
        response = self.ask(model, **options)
        assert response.status_code == 200, response.text
        return response.json()["context"]

    def unload(self, model: str) -> None:
        """Have it leave once idle."""
        response = self.runtime.http.post("/api/generate", json={"model": model, "keep_alive": 0})
        assert response.status_code == 200, response.text

    def loaded(self) -> dict[str, LoadedModel]:
        """What is in memory, by name without tag."""
        found: Loaded = self.runtime.ask_actor("scheduler", lambda link: link.ask(ListLoaded(), Loaded))
        return {each.model.name.partition(":")[0]: each for each in found.models}

    def load_times(self) -> list[tuple[float, float]]:
        """When the latest load of each model began and ended, in seconds since 1970."""
        return [(load.began_at, load.began_at + load.took_s) for load in self._decisions()]

    def decision(self, model: str) -> LoadDecision:
        """How the latest load of a model went."""
        (load,) = (each for each in self._decisions() if each.model.name.partition(":")[0] == model)
        return load

    def _decisions(self) -> tuple[LoadDecision, ...]:
        found: Explanation = self.runtime.ask_actor(
            "scheduler", lambda link: link.ask(Explain(), Explanation)
        )
        return found.loads

    def waits_for(self, model: str) -> str:
        """What somebody waits for who wants the model, in words; "" where nobody does."""
        found: Loaded = self.runtime.ask_actor("scheduler", lambda link: link.ask(ListLoaded(), Loaded))
        reasons = {each.model.name.partition(":")[0]: each.reason for each in found.waiting}
        return reasons.get(model, "")

    def wait_until_the_scheduler_sees(self, model: str) -> None:
        """Until the figures it plans with are what the devices say."""
        spec: ModelSpec = self.runtime.ask_actor("gateway", lambda link: link.ask(Resolve(model), ModelSpec))

        def is_seen() -> bool:
            plan: LoadPlan = self.runtime.ask_actor(
                "scheduler", lambda link: link.ask(PlanLoad(spec, LoadOptions(n_ctx=64)), LoadPlan)
            )
            seen = {device.id: device.free_bytes for device in plan.devices if device.id != CPU}
            return seen == {d.id: self.machine.reported_free(d.id) for d in self.machine.devices()}

        self.runtime.wait_until(is_seen, SETTLED_S)

    def kill_scheduler_once(self, is_so: Callable[[], bool]) -> None:
        """SIGKILL at the moment when something is so; returns when there is another one."""
        pid = self.runtime.pid("scheduler")
        self.wait_closely(is_so)
        os.kill(pid, signal.SIGKILL)
        self.runtime.wait_until(lambda: self.runtime.pid("scheduler") != pid, SETTLED_S)

    def wait_closely(self, is_so: Callable[[], bool]) -> None:
        """Look without a pause worth the name: what is awaited may last for milliseconds."""
        ends_s = time.monotonic() + SETTLED_S
        while not is_so():
            assert time.monotonic() < ends_s, f"it never came: {self.runtime.log()[-2000:]}"
            time.sleep(0.001)

    def devices(self) -> dict[str, int]:
        """Free bytes of what discovery offers, measured now."""
        return {device.id: device.free_bytes for device in self._devices()}

    def device_names(self) -> dict[str, str]:
        """What discovery offers, for people, by id."""
        return {device.id: device.name for device in self._devices()}

    def _devices(self) -> tuple[Device, ...]:
        found: Devices = self.runtime.ask_actor("discovery", lambda link: link.ask(MeasureDevices(), Devices))
        return found.devices

    def command(self, *args: str) -> str:
        """What `runtime ARGS` prints."""
        environ = {
            **os.environ,
            "RUNTIME_RUN_DIR": str(self.runtime.run_dir),
            "OLLAMA_HOST": self.runtime.url,
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "actors.cli.main", *args]
        done = subprocess.run(
            command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def used(self) -> dict[str, int]:
        """Bytes held on each device that has any held."""
        used = {device.id: self.machine.used(device.id) for device in self.machine.devices()}
        return {device: n_bytes for device, n_bytes in used.items() if n_bytes}

    def wait_until_nothing_is_left(self, *models: str) -> None:
        """Unload the models; no byte, process, socket or lease may stay."""

        def is_left() -> bool:
            for model in models:
                self.unload(model)
            gauges = self.runtime.stats("scheduler").gauges
            held = [n for name, n in gauges.items() if not name.endswith("_total")]
            sockets = {path.name for path in self.runtime.run_dir.glob("*.sock")}
            left = (self.used(), self.runtime.runner_pids(), sockets - LASTING, self.loaded())
            return any(left) or any(held)

        self.runtime.wait_until(lambda: not is_left(), SETTLED_S)
        self.runtime.wait_until(
            lambda: self.runtime.stats("gateway").gauges["requests_in_flight"] == 0, SETTLED_S
        )


def body(model: str, **options: object) -> dict[str, Any]:
    """A request that is not streamed."""
    return {
        "model": model, "prompt": "ab", "stream": False, "options": {**OPTIONS, **options}
    }  # fmt: skip


class Asked:
    """A request in a thread of its own, so that a test can look meanwhile."""

    def __init__(self, sim: SimRuntime, model: str, **options: object) -> None:
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(sim.ask(model, **options)))
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the answer is there."""
        return bool(self._answers)

    def result(self) -> httpx.Response:
        """The answer, which must be one or an error in words."""
        self._thread.join(COMMAND_S)
        assert self._answers, "neither an answer nor an error"
        (answer,) = self._answers
        assert answer.status_code == 200 or len(answer.json()["error"]) > 10, answer.text
        return answer


def offloaded(report: MemoryReport) -> dict[str, int]:
    """How many layers have weights on each device; those of the host too."""
    counts = {
        d.id: sum(bool(item.measured_bytes or item.planned_bytes) for item in d.weights)
        for d in report.devices
    }
    return {device: n for device, n in counts.items() if n}


def measured(report: MemoryReport) -> dict[str, int]:
    """Measured bytes of each device but the host."""
    return {
        d.id: sum(item.measured_bytes for item in (*d.weights, *d.cache, d.graph, d.overhead))
        for d in report.devices
        if d.id != CPU
    }


@contextmanager
def simulated(
    rooms: Mapping[str, int], probe: ProbeScript | None = None, **settings: str
) -> Iterator[SimRuntime]:
    """A runtime on a machine whose devices have so much room for layers, in bytes; `probe` goes wrong."""
    with tempfile.TemporaryDirectory(prefix="sim-", dir="/tmp") as folder:
        machine = SimMachine(folder)
        for device, n_bytes in rooms.items():
            machine.add_device(device, room_for(n_bytes))
        if probe is not None:
            machine.script_probe(probe)
        # a context that is configured is what is loaded: then memory is what the layers take
        context = {"RUNTIME_N_CTX": str(OPTIONS["num_ctx"])}
        # never: slots take room that layers are to have here
        context["RUNTIME_STREAM_FROM"] = str(2 * OPTIONS["num_batch"])
        environ = {"RUNTIME_SIM": folder, "OLLAMA_NUM_PARALLEL": "1", **context, **settings}
        with started(**environ) as runtime:
            made = SimRuntime(runtime, machine)
            if probe is None:
                runtime.wait_until(lambda: {*rooms} <= {*made.devices()}, SETTLED_S)
            yield made
