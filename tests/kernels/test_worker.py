"""The worker: the same tokens as running and sampling by hand, errors handed back, one step at a time."""

import select
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu.backend import CpuBackend
from kernels.cpu.sampler import logprobs, native_params, sample
from kernels.cpu.worker import CpuWorker, Draw, Drawn
from kernels.dtype import DType
from kernels.executable import Executable
from kernels.memory import HostMemory
from kernels.ops.op import F32, I32
from kernels.ops.sampling import NanLogits, SamplingParams
from kernels.plan import Placement, plan
from kernels.program import ProgramBuilder
from kernels.tensor import N_OUTPUTS
from tests.kernels.conftest import normal

N_VOCAB, N_ROWS = 4096, 6
TABLE = normal(7, N_ROWS, N_VOCAB)
TASKS = Path("/proc/self/task")
WAIT_S = 60  # a ceiling for broken builds


def looked_up(table: F32, n_threads: int = 2, small_bytes: int = 0) -> tuple[CpuBackend, Executable]:
    """A program whose logits are the rows of a table that its input names."""
    g = ProgramBuilder(0)
    with g.in_layer(0):
        weight = g.weight("table", (N_ROWS, N_VOCAB), DType.F32)
        g.output("logits", g.rows(weight, g.input("ids", (N_OUTPUTS,))))
    backend = CpuBackend(n_threads, small_bytes=small_bytes)
    made = plan(g.build(), Placement(("cpu",), "cpu"), {"cpu": backend}, {"n_outputs": N_ROWS})
    graph = np.zeros(made.graph_bytes["cpu"] + 64, np.uint8)
    graph = graph[-graph.ctypes.data % 64 :]
    weights = {("table", "cpu"): HostMemory(table.view(np.uint8).reshape(-1))}
    return backend, made.bind({"cpu": backend}, {"cpu": HostMemory(graph)}, weights, {})


def step(worker: CpuWorker, executable: Executable, ids: I32, draws: list[Draw]) -> list[Drawn]:
    worker.start(executable, {"ids": ids}, draws)
    assert select.select([worker.fd], [], [], WAIT_S)[0]
    return worker.take()


@settings(deadline=None, max_examples=30)
@given(
    ids=st.lists(st.integers(0, N_ROWS - 1), min_size=1, max_size=N_ROWS),
    penalty=st.sampled_from([1.0, 1.3]),
    temperature=st.sampled_from([0.0, 0.8]),
    position=st.integers(0, 2**40),
    n_threads=st.integers(1, 3),
)
def test_rows_are_sampled_as_each_is_alone(
    ids: list[int], penalty: float, temperature: float, position: int, n_threads: int
) -> None:
    params = SamplingParams(temperature=temperature, repeat_penalty=penalty, seed=5)
    history = [3, 5, 3]
    backend, executable = looked_up(TABLE, n_threads)
    draws = [Draw(native_params(params), position + row, history, 2) for row in range(len(ids))]
    drawn = step(CpuWorker(backend), executable, np.array(ids, np.int32), draws)
    for row, (table_row, got) in enumerate(zip(ids, drawn, strict=True)):
        token = sample(TABLE[table_row], np.array(history, np.int32), params, position + row)
        assert (got.token, got.logprob, list(got.top)) == (token, *logprobs(TABLE[table_row], token, 2))


def is_waiting(task: Path) -> bool:
    """Whether a thread of the pool has given itself its name and sleeps: it does nothing more unasked."""
    name, rest = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
    return name.startswith("kernels-") and rest.split()[0] == "S"


@pytest.mark.parametrize("is_small", [False, True])
def test_what_is_small_wakes_no_thread_and_the_rest_wakes_all(is_small: bool) -> None:
    before = {task.name for task in TASKS.iterdir()}
    backend, executable = looked_up(TABLE, n_threads=3, small_bytes=int(is_small))
    made = [task for task in TASKS.iterdir() if task.name not in before]

    def ran_ns() -> list[int]:
        return [int((task / "schedstat").read_text().split()[0]) for task in made]

    worker = CpuWorker(backend)
    draws = [Draw(native_params(SamplingParams(temperature=0)), 0, (), -1) for _ in range(N_ROWS)]
    while not all(is_waiting(task) for task in made):
        time.sleep(0.01)
    time.sleep(0.01)  # what they ran is counted once they have left the processor
    began = ran_ns()
    for _ in range(20):
        drawn = step(worker, executable, np.arange(N_ROWS, dtype=np.int32), draws)
        assert [row.token for row in drawn] == TABLE.argmax(1).tolist()
    gone_on = [later > earlier for earlier, later in zip(began, ran_ns(), strict=True)]
    assert gone_on == [not is_small] * 2


def test_a_row_without_meaning_costs_only_itself() -> None:
    table = TABLE.copy()
    table[1, 17] = np.nan
    backend, executable = looked_up(table)
    draws = [Draw(native_params(SamplingParams(temperature=0)), 0, (), -1) for _ in range(3)]
    drawn = step(CpuWorker(backend), executable, np.array([0, 1, 2], np.int32), draws)
    assert [type(row.error) for row in drawn] == [type(None), NanLogits, type(None)]


def test_what_a_step_raises_comes_with_its_result_and_the_next_step_runs() -> None:
    backend, executable = looked_up(TABLE)
    worker = CpuWorker(backend)
    draws = [Draw(native_params(SamplingParams(temperature=0)), 0, (), -1)]
    with pytest.raises(ValueError, match="ids"):
        step(worker, executable, np.array([N_ROWS], np.int32), draws)
    assert step(worker, executable, np.array([2], np.int32), draws)[0].token == TABLE[2].argmax()


def test_a_second_step_is_refused_until_the_first_is_taken() -> None:
    backend, executable = looked_up(TABLE)
    worker = CpuWorker(backend)
    draws = [Draw(native_params(SamplingParams(temperature=0)), 0, (), -1)]
    ids = {"ids": np.array([0], np.int32)}
    with pytest.raises(RuntimeError, match="no job is done"):
        worker.take()
    worker.start(executable, ids, draws)
    with pytest.raises(RuntimeError, match="under way"):
        worker.start(executable, ids, draws)
    assert select.select([worker.fd], [], [], WAIT_S)[0]
    assert worker.take()[0].token == TABLE[0].argmax()


def test_as_many_draws_as_rows_are_needed() -> None:
    backend, executable = looked_up(TABLE)
    with pytest.raises(ValueError, match="a draw for each row"):
        CpuWorker(backend).start(executable, {"ids": np.array([0, 1], np.int32)}, [])
