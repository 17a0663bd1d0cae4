"""Ours at the level of the kernels: a model's executables run on index arrays made here."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from actors.runner.model import Model
from bench.case import TOKENS_PER_S, Case, Kind, Metric, Skipped
from bench.files import ModelFile
from bench.inputs import index_arrays
from bench.opening import opened
from bench.overhead import engine_overhead
from bench.served import start_and_memory

N_WARM_STEPS = 2
N_WARM_TOKENS = 32


class Ours:
    """Satisfies `bench.case.Contender`."""

    name = "ours"

    def __init__(self, n_threads: int, isa: str) -> None:
        self._n_threads = n_threads
        self._isa = isa

    def measure(self, case: Case, file: ModelFile) -> Mapping[Metric, float]:
        """One sample of everything the case gives."""
        match case.kind:
            case Kind.PROMPT:
                return {TOKENS_PER_S: self._prompt(case, file)}
            case Kind.DECODE | Kind.BATCH:
                return {TOKENS_PER_S: self._decode(case, file)}
            case Kind.START:
                return start_and_memory(file, self._n_threads, self._isa)
            case Kind.OVERHEAD:
                return engine_overhead(case, file, self._n_threads, self._isa)

    def _prompt(self, case: Case, file: ModelFile) -> float:
        with opened(file, case.n_tokens, 1, self._n_threads, self._isa) as model:
            _run(model, [0], min(N_WARM_TOKENS, case.n_tokens))
            return case.n_tokens / _run(model, [0], case.n_tokens)

    def _decode(self, case: Case, file: ModelFile) -> float:
        last = case.depth + N_WARM_STEPS + case.n_tokens
        if last > file.shape.n_ctx_train:
            raise Skipped(f"{last} positions are more than the {file.shape.n_ctx_train} of {file.shape.name}")
        with opened(file, last, case.n_seq, self._n_threads, self._isa) as model:
            fill_cache(model)
            for step in range(N_WARM_STEPS):
                _run(model, [case.depth + step] * case.n_seq, 1)
            seconds = sum(
                _run(model, [case.depth + N_WARM_STEPS + step] * case.n_seq, 1)
                for step in range(case.n_tokens)
            )
            return case.n_seq * case.n_tokens / seconds


def fill_cache(model: Model) -> None:
    """Random keys and values in place of computed ones: a long context costs its reading, not its making."""
    rng = np.random.default_rng(0)
    for state in model.states.values():
        bits = np.frombuffer(rng.bytes(state.n_bytes), np.uint16)
        # f16: random sign and mantissa, magnitude 0.5 to 1
        state.upload(((bits & np.uint16(0x83FF)) | np.uint16(14 << 10)).view(np.uint8))


def _run(model: Model, depths: Sequence[int], n_tokens: int) -> float:
    """Seconds of one pass: n_tokens new inputs of each sequence, of which depths[i] cells are filled."""
    inputs = index_arrays(depths, n_tokens, model.n_pages // model.n_parallel, model.page_size, model.n_vocab)
    executable = model.executable(len(depths) * n_tokens, len(depths))
    began_s = time.perf_counter()
    logits = executable.run(inputs)["logits"]
    took_s = time.perf_counter() - began_s
    if not np.isfinite(logits).all():
        raise ArithmeticError(f"{model.spec.name} gave logits that are not finite")
    return took_s
