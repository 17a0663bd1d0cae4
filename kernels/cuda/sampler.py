"""The sampler of a CUDA device: the tokens of `kernels.ops.sampling`, drawn where the logits are.

Everything it needs is one range of memory, of a size known before anything is allocated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernels.cuda.driver import Driver, Launch, Pointer
from kernels.cuda.launches import WARP, blocks, end_of, launch, parts_at
from kernels.cuda.memory import CudaMemory
from kernels.memory import Bytes
from kernels.ops.op import I32
from kernels.ops.sampling import (
    BAD_HISTORY,
    MAX_TOP_LOGPROBS,
    MAX_VOCAB,
    SEED_MASK,
    SamplingError,
    SamplingParams,
    fault_of,
)

N_THREADS = 512  # of the block that chooses a row's token
N_SCAN_THREADS = 256
PER_BLOCK = 128  # logits under one maximum
N_SLOTS = 8  # rows that are chosen from at a time: each has a list that all tokens fit into
CHOICE_BYTES = 8 + 8 + 4  # weight, value, id
HEAD = np.dtype([("logits", "u8"), ("masks", "u8"), ("n_rows", "i4"), ("pad", "i4")])
REQUEST = np.dtype(
    [
        *((name, "f8") for name in ("temperature", "top_p", "min_p", "typical_p")),
        *((name, "f8") for name in ("repeat_penalty", "presence_penalty", "frequency_penalty")),
        *((name, "u8") for name in ("seed", "position")),
        *((name, "i4") for name in ("top_k", "first_count", "n_counts", "n_logprobs", "is_masked", "code")),
    ]
)
COUNT = np.dtype([("id", "i4"), ("n", "i4")])
MAX_TOP_K = 2**31 - 1
NO_LOGPROBS = -1


class Wish(NamedTuple):
    """How to sample a row of logits; see `kernels.cpu.sampler.sample` and `logprobs`."""

    params: SamplingParams
    position: int
    history: Sequence[int] | I32  # oldest first
    n_logprobs: int = NO_LOGPROBS  # log-probabilities of so many besides the token's


class Sampled(NamedTuple):
    """A token, or why there is none."""

    token: int
    error: SamplingError | None = None
    logprob: float = 0.0
    top: Sequence[tuple[int, float]] = ()  # likeliest first


class CudaSampler:
    """Samples up to n_rows rows of n_vocab logits, each with up to n_history different tokens before it."""

    def __init__(
        self,
        driver: Driver,
        memory: CudaMemory,
        n_rows: int,
        n_vocab: int,
        n_history: int,
        n_threads: int = N_THREADS,
    ) -> None:
        """memory: at least `sampler_bytes`.  ValueError: a vocabulary of more than 2^19 tokens."""
        if n_vocab > MAX_VOCAB:
            raise ValueError(f"a vocabulary of {n_vocab} tokens, at most {MAX_VOCAB} are sampled from")
        sizes = _sizes(n_rows, n_vocab, n_history)
        places = parts_at(memory.pointer, sizes)
        self._n_rows, self._n_vocab = n_rows, n_vocab
        self._driver = driver
        self._asked = memory.part(0, sizes[0])
        result_begin = places[-1] - memory.pointer
        self._results = memory.part(result_begin, sizes[-1])
        self._landed = np.zeros(sizes[-1], np.uint8)
        works = self._works(places, n_threads)
        driver.prepare(works)
        self._graph = driver.record(works)

    def sample(self, logits: Pointer, wishes: Sequence[Wish], masks: Pointer = 0) -> list[Sampled]:
        """A token for each wish, from its row of logits [n_wishes, n_vocab] f32 in the device's memory.

        masks [n_wishes, n_vocab] u8 there, 0 for none.  Waits for the tokens.  ValueError: too many rows, or
        a count of log-probabilities outside 0..20.
        """
        if not wishes:
            return []
        self._asked.upload(self._request(logits, wishes, masks))
        self._graph.launch()
        self._results.download(self._landed)
        return self._read(wishes)

    def _request(self, logits: Pointer, wishes: Sequence[Wish], masks: Pointer) -> Bytes:
        """Head, requests and counts, as the kernels have them."""
        if len(wishes) > self._n_rows:
            raise ValueError(f"{len(wishes)} rows, at most {self._n_rows} are sampled at a time")
        head = np.array([(logits, masks, len(wishes), 0)], HEAD)
        requests = np.zeros(len(wishes), REQUEST)
        counted: list[Bytes] = []
        n_counts = 0
        for row, wish in enumerate(wishes):
            if wish.n_logprobs > MAX_TOP_LOGPROBS:
                raise ValueError(f"{wish.n_logprobs} log-probabilities, expected 0..{MAX_TOP_LOGPROBS}")
            counts = self._counts(wish)
            n_mine, code = (0, BAD_HISTORY) if counts is None else (counts.nbytes // COUNT.itemsize, 0)
            p = wish.params
            requests[row] = (
                p.temperature, p.top_p, p.min_p, p.typical_p,
                p.repeat_penalty, p.presence_penalty, p.frequency_penalty,
                p.seed & SEED_MASK, wish.position & SEED_MASK,
                max(-1, min(p.top_k, MAX_TOP_K)), n_counts, n_mine, wish.n_logprobs, masks != 0, code,
            )  # fmt: skip
            if counts is not None:
                counted.append(counts)
            n_counts += n_mine
        return np.concatenate([head.view(np.uint8), requests.view(np.uint8), *counted])

    def _counts(self, wish: Wish) -> Bytes | None:
        """How often each token was seen that has a penalty, ids ascending; None for an id that is none."""
        n_last = wish.params.repeat_last_n
        seen = np.asarray(wish.history, np.int32)
        seen = seen if n_last < 0 else seen[max(0, len(seen) - n_last) :]
        if len(seen) and not 0 <= int(seen.min()) <= int(seen.max()) < self._n_vocab:
            return None
        if not wish.params.has_penalties:
            seen = seen[:0]
        ids, counts = np.unique(seen, return_counts=True)
        made = np.empty(len(ids), COUNT)
        made["id"], made["n"] = ids, counts
        return made.view(np.uint8)

    def _read(self, wishes: Sequence[Wish]) -> list[Sampled]:
        tokens, chosen, ids, top = (
            self._landed[begin : begin + n_bytes].view(kind)
            for begin, n_bytes, kind in zip(
                parts_at(0, _result_sizes(self._n_rows)),
                _result_sizes(self._n_rows),
                (np.int32, np.float64, np.int32, np.float64),
                strict=True,
            )
        )
        found: list[Sampled] = []
        for row, wish in enumerate(wishes):
            token = int(tokens[row])
            if token < 0:
                found.append(Sampled(0, fault_of(token, self._n_vocab)))
            elif wish.n_logprobs < 0:
                found.append(Sampled(token))
            else:
                begin = row * MAX_TOP_LOGPROBS
                part = slice(begin, begin + min(wish.n_logprobs, self._n_vocab))
                entries = list(zip(ids[part].tolist(), top[part].tolist(), strict=True))
                found.append(Sampled(token, None, float(chosen[row]), entries))
        return found

    def _works(self, places: Sequence[Pointer], n_threads: int) -> Sequence[Launch]:
        asked, raw, masked, sums, visited, lists, results = places
        n_vocab = np.int32(self._n_vocab)
        tokens, chosen, ids, top = parts_at(results, _result_sizes(self._n_rows))
        n_scanned = blocks(blocks(self._n_vocab, PER_BLOCK), N_SCAN_THREADS // WARP)
        slots = (min(self._n_rows, N_SLOTS), 1, 1)
        return [
            launch(
                "sample_scan", "", (n_scanned, self._n_rows, 1), N_SCAN_THREADS,
                [asked, raw, masked, sums, n_vocab],
            ),
            launch(
                "sample_choose", "", slots, n_threads, [asked, raw, masked, visited, lists, tokens, n_vocab]
            ),
            launch(
                "sample_shares", "", slots, n_threads,
                [asked, raw, sums, visited, lists, tokens, chosen, ids, top, n_vocab],
            ),
        ]  # fmt: skip


def sampler_bytes(n_rows: int, n_vocab: int, n_history: int) -> int:
    """What a `CudaSampler` needs."""
    return end_of(_sizes(n_rows, n_vocab, n_history))


def _sizes(n_rows: int, n_vocab: int, n_history: int) -> Sequence[int]:
    """What is asked, maxima, maxima under masks, sums, blocks to visit, lists, results."""
    n_blocks, n_slots = blocks(n_vocab, PER_BLOCK), min(n_rows, N_SLOTS)
    n_counts = n_rows * min(n_history, n_vocab)
    return (
        HEAD.itemsize + n_rows * REQUEST.itemsize + n_counts * COUNT.itemsize,
        4 * n_rows * n_blocks,
        4 * n_rows * n_blocks,
        8 * n_rows * n_blocks,
        4 * n_slots * n_blocks,
        CHOICE_BYTES * n_slots * n_vocab,
        end_of(_result_sizes(n_rows)),
    )


def _result_sizes(n_rows: int) -> Sequence[int]:
    """Tokens, their log-probabilities, ids of the likeliest, theirs."""
    return 4 * n_rows, 8 * n_rows, 4 * n_rows * MAX_TOP_LOGPROBS, 8 * n_rows * MAX_TOP_LOGPROBS
