"""A random life of models on simulated devices: loads, unloads, clients that leave, kills, other programs.

Whatever happens, each request gets the model's own answer or an error in words, and in the end no process,
socket, lease or byte is left.  The steps follow from the seed; their timing is the machine's.
"""

import os
import random
import signal
from collections import Counter
from contextlib import suppress

import httpx

from tests.system.sim_runtime import (
    ALL_BYTES,
    BESIDE_BYTES,
    LAYER_BYTES,
    LONG,
    MIB,
    A,
    Asked,
    B,
    SimRuntime,
    body,
    simulated,
)

ACTORS = ("scheduler", "scheduler", "discovery", "host")  # by how much of a life they decide
MODELS = ("m", "n", "o")
AWAITED_MAX = 4  # requests that are under way when the next step is taken
HANG_UP_S = (0.05, 0.6)  # after so long a client leaves: before, in or after its load


class Campaign:
    """One life, from the seed."""

    def __init__(self, sim: SimRuntime, seed: int) -> None:
        self._sim = sim
        self._draw = random.Random(seed)
        self._asked: list[tuple[str, Asked]] = []
        self._answers: dict[str, list[int]] = {}
        self.counts: Counter[str] = Counter()

    def run(self, n_steps: int) -> None:
        """Take the steps and look what is left; AssertionError says what is wrong."""
        for seed, model in enumerate(MODELS, 1):
            self._sim.add_model(model, seed)
        steps = (
            self._ask,
            self._hang_up,
            self._unload,
            self._kill_runner,
            self._kill_actor,
            self._disturb,
        )
        for _ in range(n_steps):
            step = self._draw.choices(steps, (6, 3, 3, 2, 1, 3))[0]
            step()
            self.counts[step.__name__] += 1
            while len(self._asked) > AWAITED_MAX:
                self._judge(*self._asked.pop(0))
        for model, asked in self._asked:
            self._judge(model, asked)
        for device in (A, B):
            self._sim.machine.give_back("game", device)
            self._sim.machine.fail_allocation(device, 0)
        for model in MODELS:  # whole again: each is answered once more
            self._judge(model, Asked(self._sim, model), is_calm=True)
        for device in (A, B):  # what another program was to take may have been taken by now only
            self._sim.machine.give_back("game", device)
        self._sim.wait_until_nothing_is_left(*MODELS)

    def _judge(self, model: str, asked: Asked, *, is_calm: bool = False) -> None:
        response = asked.result()
        if response.status_code != 200:
            assert not is_calm, response.text
            assert response.status_code >= 500, response.text
            self.counts[response.text] += 1
            return
        self.counts["answers"] += 1
        tokens = response.json()["context"]
        assert tokens == self._answers.setdefault(model, tokens), model

    def _ask(self) -> None:
        model = self._draw.choice(MODELS)
        self._asked.append((model, Asked(self._sim, model)))

    def _hang_up(self) -> None:
        streamed = body(self._draw.choice(MODELS), **LONG)
        with suppress(httpx.TimeoutException):
            httpx.post(
                f"{self._sim.runtime.url}/api/generate",
                json=streamed,
                timeout=self._draw.uniform(*HANG_UP_S),
                trust_env=False,
            )

    def _unload(self) -> None:
        response = self._sim.runtime.http.post(
            "/api/generate", json={"model": self._draw.choice(MODELS), "keep_alive": 0}
        )
        assert response.status_code in (200, 503), response.text  # the scheduler may be down

    def _kill_runner(self) -> None:
        if pids := self._sim.runtime.runner_pids():
            with suppress(ProcessLookupError):
                os.kill(self._draw.choice(sorted(pids)), signal.SIGKILL)

    def _kill_actor(self) -> None:
        """Of those that a model's life depends on; the host takes its runners along."""
        with suppress(Exception):  # it is down already
            os.kill(self._sim.runtime.pid(self._draw.choice(ACTORS)), signal.SIGKILL)

    def _disturb(self) -> None:
        """Another program, an allocation that fails, or both are over."""
        device, machine = self._draw.choice((A, B)), self._sim.machine
        match self._draw.randrange(3):
            case 0:
                machine.take_before_allocation("game", device, self._draw.randrange(1, 40) * MIB)
            case 1:
                machine.fail_allocation(device, self._draw.randrange(1, 6))
            case _:
                machine.give_back("game", device)


def campaign(n_steps: int, seed: int) -> Counter[str]:
    """One life in a runtime of its own; what was done, counted."""
    with simulated({A: ALL_BYTES, B: BESIDE_BYTES + 6 * LAYER_BYTES}) as sim:
        made = Campaign(sim, seed)
        made.run(n_steps)
        return made.counts
