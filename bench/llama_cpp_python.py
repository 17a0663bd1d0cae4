"""A peer without its tools: llama-cpp-python in an environment of its own, whose interpreter runs this file.

`PYTHON llama_cpp_python.py MODEL N_THREADS DEPTH N_PROMPT N_DECODE` prints tokens a second: of a prompt of
N_PROMPT tokens when that is not 0, else of N_DECODE steps behind DEPTH cells.  Imports nothing of ours.
"""

import importlib
import random
import sys
import time

N_BATCH = 512
N_SPECIAL = 300  # ids below are bytes or special in some vocabularies
N_WARM = 32


def tokens_per_s(model: str, n_threads: int, depth: int, n_prompt: int, n_decode: int) -> float:
    """Warm up, fill the cache, then take the time."""
    llama_cpp = importlib.import_module("llama_cpp")
    llama = llama_cpp.Llama(
        model,
        n_ctx=N_WARM + depth + n_prompt + n_decode,
        n_batch=N_BATCH,
        n_ubatch=N_BATCH,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )
    rng = random.Random(0)
    tokens = [rng.randrange(N_SPECIAL, llama.n_vocab()) for _ in range(depth + n_prompt + n_decode + N_WARM)]
    llama.eval(tokens[:N_WARM])
    if depth:
        llama.eval(tokens[N_WARM : N_WARM + depth])
    rest = tokens[N_WARM + depth :]
    began_s = time.perf_counter()
    if n_prompt:
        llama.eval(rest[:n_prompt])
    else:
        for token in rest[:n_decode]:
            llama.eval([token])
    return (n_prompt or n_decode) / (time.perf_counter() - began_s)


if __name__ == "__main__":
    print(tokens_per_s(sys.argv[1], *map(int, sys.argv[2:])))
