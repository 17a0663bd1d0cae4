"""The command line of the bench."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from bench.case import Kind
from bench.session import FULL, QUICK, Sizes
from bench.shapes import FILE_TYPES, SHAPES, Shape
from kernels.cpu.backend import available_isas

FILE_NAME = "bench.json"
DETAIL = "Q4_K_M"  # what most people have
PEERS_VARIABLE = "BENCH_PEERS"
READ_BUFFER_BYTES, QUICK_BUFFER_BYTES = 512 << 20, 32 << 20  # far larger than the caches; quick: no matter
PASS_S, QUICK_PASS_S = 0.03, 0.002

T = TypeVar("T")


class Options(argparse.Namespace):
    """What was asked for."""

    quick: bool
    shapes: list[Shape]
    types: list[str]
    detail: list[str]
    only: list[Kind]
    rounds: int
    depths: list[int]
    seqs: list[int]
    threads: int
    isa: str
    vocab: list[Path]
    peer: list[str]
    models: Path
    out: Path
    markdown: bool
    into: Path | None

    @property
    def sizes(self) -> Sizes:
        """How much is measured."""
        sizes = QUICK if self.quick else FULL
        return dataclasses.replace(
            sizes,
            n_rounds=self.rounds or sizes.n_rounds,
            depths=tuple(self.depths or sizes.depths),
            n_seqs=tuple(self.seqs or sizes.n_seqs),
        )

    @property
    def buffer_bytes(self) -> int:
        """Streamed through to measure reading."""
        return QUICK_BUFFER_BYTES if self.quick else READ_BUFFER_BYTES

    @property
    def pass_s(self) -> float:
        """Of one pass of the arithmetic chains."""
        return QUICK_PASS_S if self.quick else PASS_S


def parse(arguments: Sequence[str]) -> Options:
    """All options, defaults filled in; exits with words when they make no sense."""
    parser = _parser()
    options = parser.parse_args(arguments, namespace=Options())
    if not options.shapes:
        options.shapes = [SHAPES["tiny" if options.quick else "1B"]]
    if not options.detail:
        options.detail = [DETAIL if DETAIL in options.types else options.types[0]]
    if not set(options.detail) <= set(options.types):
        parser.error("--detail names types that --types leaves out")
    if not options.peer:
        options.peer = os.environ.get(PEERS_VARIABLE, "").split()
    return options


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench", description="Measures; see docs/performance.md.")
    kinds = {kind.value: kind for kind in Kind}
    types = {name: name for name in FILE_TYPES}
    isas = available_isas()
    add = made.add_argument
    add("--quick", action="store_true", help="a tiny model and one round: does everything work?")
    add("--shapes", type=_choice(SHAPES), default=[], help=f"of {', '.join(SHAPES)}; default 1B")
    add("--types", type=_choice(types), default=list(types), help=f"of {', '.join(types)}; default all")
    add(
        "--detail",
        type=_choice(types),
        default=[],
        help=f"types with long contexts, batches, start and engine measured too; default {DETAIL}",
    )
    add("--only", type=_choice(kinds), default=list(Kind), help=f"of {', '.join(kinds)}; default all")
    add("--rounds", type=_count, default=0, help=f"default {FULL.n_rounds}")
    add("--depths", type=_numbers, default=[], help="filled cells when decoding; default 0,4096,16384")
    add("--seqs", type=_counts, default=[], help="sequences in one batch; default 4,8,16,32")
    add("--threads", type=_count, default=len(os.sched_getaffinity(0)), help="default: processors allowed")
    add("--isa", choices=isas, default=isas[0], help=f"instruction set; default {isas[0]}")
    add(
        "--vocab",
        type=Path,
        action="append",
        default=[],
        metavar="GGUF",
        help="a real vocabulary; repeatable",
    )
    add(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"a folder with llama-bench and its like; repeatable; also in {PEERS_VARIABLE}, between spaces",
    )
    add("--models", type=Path, default=Path("build/bench"), help="where generated files are kept")
    add("--out", type=Path, default=Path("build/bench/out"), help="where the results go")
    add("--markdown", action="store_true", help="print the tables of the results in --out and end")
    add(
        "--into",
        type=Path,
        metavar="PAGE",
        help="put the tables and pictures of --out into this page and end",
    )
    return made


def _choice(known: Mapping[str, T]) -> Callable[[str], list[T]]:
    """Names between commas."""

    def values(text: str) -> list[T]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return [known[name] for name in names]

    return values


def _counts(text: str) -> list[int]:
    """Numbers from 1 on, between commas."""
    return [_count(part) for part in text.split(",")]


def _numbers(text: str) -> list[int]:
    """Numbers between commas."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers between commas")
    return [int(part) for part in text.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)
