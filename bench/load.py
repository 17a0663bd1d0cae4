"""`python -m bench.load`: many clients at once, ours and `llama-server` in turn, through OpenAI's API.

Closed loads keep a number of streams busy; the open load has requests arrive as they do from many people who
know nothing of one another (Poisson), of mixed lengths, some of which leave or read slowly.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import trio

from bench.files import model_file
from bench.load_client import Answered, ask
from bench.load_requests import Asked, alike, poisson, text_of
from bench.load_servers import HOST, MODEL, N_PARALLEL, Server, llama_server, ours
from bench.shapes import SHAPES
from bench.vocabulary import BenchError, choose

N_PROMPT, N_PREDICT = 200, 64  # of the closed loads
N_ALONE = 4  # requests of one stream alone
N_OVERHEAD = 100
BUILTIN = Path(__file__).parent.parent / "actors/gateway/library/builtin/handbook.gguf"


class Options(argparse.Namespace):
    """What the command line says."""

    models: str
    llama_server: Path | None
    rounds: int
    per_stream: int
    rate: float
    open_s: float
    threads: int
    folder: Path


Start = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one load on one server; latencies in seconds."""

    requests_per_s: float
    tokens_per_s: float
    first_s: Sequence[float]
    between_s: Sequence[float]
    n_left: int
    errors: Sequence[str]


def main(arguments: Sequence[str]) -> int:
    """Process entry; the exit code."""
    options = _parser().parse_args(arguments, namespace=Options())
    try:
        for name in options.models.split(","):
            measure(name, options)
    except (BenchError, OSError) as exc:
        sys.stderr.write(f"bench.load: {exc}\n")
        return 1
    return 0


def measure(name: str, options: Options) -> None:
    """Every load on every server in turn, and what our own layers add; printed as they come."""
    path = BUILTIN if name == "builtin" else _generated(name, options.folder)
    starts: list[Start] = [partial(ours, path, options.threads)]
    if options.llama_server:
        starts.append(partial(llama_server, options.llama_server, path, options.threads))
    print(f"\n{path.name}, {options.threads} threads, medians (lowest..highest) of {options.rounds} rounds\n")
    print(
        "| load | server | requests/s | tokens/s | first token ms p50 / p95 / p99 "
        "| between tokens ms p50 / p95 / p99 | left | errors |"
    )
    print("|---|---|---|---|---|---|---|---|")
    found: dict[tuple[str, str], list[Figures]] = {}
    added_s: list[float] = []
    for turn in range(options.rounds):
        for start in starts if turn % 2 == 0 else reversed(starts):
            with start() as server:
                tokens_per_word = trio.run(_tokens_per_word, server)
                for load, n_streams, asked in _loads(turn, tokens_per_word, options):
                    figures = trio.run(put, server, asked, n_streams)
                    found.setdefault((load, server.name), []).append(figures)
                if server.name == "ours":
                    added_s.append(_added_s(server))
    for (load, server_name), samples in sorted(found.items()):
        print(f"| {load} | {server_name} | {_row(samples)} |")
    print(f"\ngateway and protocol add {_spread(added_s, 1e3)} ms to a request of one token", flush=True)


async def put(server: Server, asked: Sequence[Asked], n_streams: int) -> Figures:
    """Put a load on a server: n_streams at any time, or each at its own time where that is 0."""
    answers: list[Answered] = []
    began_s = time.perf_counter()
    waiting = iter(asked)

    async def one(request: Asked) -> None:
        await trio.sleep(max(0.0, began_s + request.at_s - time.perf_counter()))
        answers.append(await ask(server.port, MODEL, request))

    async def many() -> None:
        for request in waiting:
            await one(request)

    async with trio.open_nursery() as nursery:
        if n_streams:
            for _ in range(n_streams):
                nursery.start_soon(many)
        else:
            for request in asked:
                nursery.start_soon(one, request)
    return figures_of(answers, time.perf_counter() - began_s)


def figures_of(answers: Sequence[Answered], took_s: float) -> Figures:
    """Of all answers together.  Who leaves counts as a request, its tokens as far as they came."""
    fine = [answer for answer in answers if not answer.error]
    return Figures(
        requests_per_s=len(fine) / took_s,
        tokens_per_s=sum(a.n_predicted or len(a.events_s) for a in fine) / took_s,
        first_s=[a.events_s[0] - a.asked_s for a in fine if a.events_s],
        between_s=[
            later - earlier for a in fine for earlier, later in zip(a.events_s, a.events_s[1:], strict=False)
        ],
        n_left=sum(a.is_left for a in fine),
        errors=[answer.error for answer in answers if answer.error],
    )


def percentile(values: Sequence[float], part: float) -> float:
    """The value that this part of all does not exceed (nearest rank); NaN of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))] if ranked else float("nan")


def _loads(seed: int, tokens_per_word: float, options: Options) -> Iterator[tuple[str, int, Sequence[Asked]]]:
    """Name, streams at once (0: as they arrive), requests."""
    n_many = options.per_stream * N_PARALLEL
    yield "1 stream", 1, alike(seed, N_ALONE, N_PROMPT, N_PREDICT, tokens_per_word)
    many = alike(seed + 1000, n_many, N_PROMPT, N_PREDICT, tokens_per_word)
    yield f"{N_PARALLEL} streams", N_PARALLEL, many
    rate = options.rate
    yield f"{rate:g} arrivals/s", 0, poisson(seed, round(options.open_s * rate), rate, tokens_per_word)


async def _tokens_per_word(server: Server) -> float:
    """Of this model's vocabulary; the question has the model loaded as well."""
    n_words = 200
    answered = await ask(server.port, MODEL, Asked(0.0, text_of(random.Random(1), n_words), 1))
    if answered.error or not answered.n_prompt:
        raise BenchError(f"{server.name} gave no answer: {answered.error or 'no usage'}")
    return answered.n_prompt / n_words


def _added_s(server: Server) -> float:
    """Median of what a client waits beyond the runner's own time for one token, over one connection.

    The client is the standard library's: a tenth of what httpx takes, which would count as ours.
    """
    asked = {
        "model": MODEL,
        "prompt": "one word",
        "raw": True,
        "stream": False,
        "options": {"num_predict": 1},
    }
    body, headers = json.dumps(asked), {"content-type": "application/json"}
    added_s: list[float] = []
    with closing(HTTPConnection(HOST, server.port)) as client:
        for _ in range(N_OVERHEAD):
            began_s = time.perf_counter()
            client.request("POST", "/api/generate", body, headers)
            answer = json.loads(client.getresponse().read())
            took_s = time.perf_counter() - began_s
            added_s.append(took_s - 1e-9 * (answer["prompt_eval_duration"] + answer["eval_duration"]))
    return median(added_s)


def _generated(name: str, folder: Path) -> Path:
    if name not in SHAPES:
        raise BenchError(f"{name} is none of builtin, {', '.join(SHAPES)}")
    shape = SHAPES[name]
    return model_file(folder, shape, "Q4_K_M", choose((), shape.n_vocab)).path


def _row(samples: Sequence[Figures]) -> str:
    cells = [
        _spread([s.requests_per_s for s in samples]),
        _spread([s.tokens_per_s for s in samples]),
        _percentiles([s.first_s for s in samples]),
        _percentiles([s.between_s for s in samples]),
        str(sum(s.n_left for s in samples)),
        str(sum(len(s.errors) for s in samples)),
    ]
    return " | ".join(cells)


def _percentiles(rounds: Sequence[Sequence[float]]) -> str:
    """p50 / p95 / p99 in milliseconds, each over the rounds."""
    parts = (0.5, 0.95, 0.99)
    return " / ".join(_spread([percentile(values, part) for values in rounds], 1e3) for part in parts)


def _spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Median and extremes."""
    low, middle, high = (f"{scale * v:.3g}" for v in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low}..{high})"


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    add = made.add_argument
    add("--models", default="builtin,qwen2-0.5B", help=f"of builtin, {', '.join(SHAPES)}")
    add("--llama-server", type=Path, metavar="PROGRAM", help="measured beside ours")
    add("--rounds", type=int, default=3)
    add("--per-stream", type=int, default=2, help=f"requests of each of {N_PARALLEL} streams")
    add("--rate", type=float, default=0.5, help="arrivals a second of the open load")
    add("--open-s", type=float, default=60.0, help="seconds of arrivals of the open load")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--folder", type=Path, default=Path("build/bench"), help="where generated files are kept")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
