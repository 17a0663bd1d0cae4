"""llama.cpp and what descends from it, measured with their own tools: llama-bench, batched-bench, server."""

import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.case import (
    ANON_BYTES,
    FIRST_TOKEN_S,
    TOKENS_PER_S,
    Case,
    Kind,
    Metric,
    Skipped,
)
from bench.files import ModelFile
from bench.llama_server import first_token
from bench.vocabulary import BenchError

TIMEOUT_S = 1800.0  # a prompt of 16k tokens takes minutes
LAST_LINES = 3
SCRIPT = Path(__file__).with_name("llama_cpp_python.py")


class BenchRow(msgspec.Struct):
    """A result of llama-bench, of which only this is read."""

    n_prompt: int
    n_gen: int
    avg_ts: float


class BatchedRow(msgspec.Struct):
    """A result of llama-batched-bench: `pl` sequences, tokens a second of all together."""

    pl: int
    speed_tg: float


Row = TypeVar("Row", BenchRow, BatchedRow)


@dataclass(frozen=True, slots=True)
class Peer:
    """Satisfies `bench.case.Contender` with whichever tools there are."""

    name: str
    n_threads: int
    bench: Path | None = None
    batched: Path | None = None
    server: Path | None = None

    def measure(self, case: Case, file: ModelFile) -> Mapping[Metric, float]:
        """One sample; Skipped for lack of a tool, and where the tool fails."""
        match case.kind:
            case Kind.PROMPT:
                return {TOKENS_PER_S: self._bench(file, ["-p", str(case.n_tokens), "-n", "0"], n_gen=0)}
            case Kind.DECODE:
                return {TOKENS_PER_S: self._decode(case, file)}
            case Kind.BATCH:
                return {TOKENS_PER_S: self._batch(case, file)}
            case Kind.START:
                server = self._tool(self.server, "llama-server")
                seconds, n_bytes = first_token(server, file.path, self.n_threads)
                return {FIRST_TOKEN_S: seconds, ANON_BYTES: n_bytes}
            case Kind.OVERHEAD:
                raise Skipped("nobody can look inside")

    def _decode(self, case: Case, file: ModelFile) -> float:
        n_gen = str(case.n_tokens)
        if not case.depth:
            return self._bench(file, ["-p", "0", "-n", n_gen], n_gen=case.n_tokens)
        spoken = output_of([self._tool(self.bench, "llama-bench"), "--help"])
        if "--n-depth" in spoken:
            return self._bench(file, ["-p", "0", "-n", n_gen, "-d", str(case.depth)], n_gen=case.n_tokens)
        if "-gp " in spoken:
            arguments = ["-p", "0", "-n", "0", "-gp", f"{case.depth},{n_gen}"]
            return self._bench(file, arguments, n_gen=case.n_tokens)
        raise Skipped("its llama-bench cannot decode behind a filled cache (no -d, no -gp)")

    def _bench(self, file: ModelFile, arguments: Sequence[str], n_gen: int) -> float:
        tool = self._tool(self.bench, "llama-bench")
        common = ["-m", file.path, "-t", str(self.n_threads), "-r", "1", "-o", "json"]
        rows = parse_bench(output_of([tool, *common, *arguments]))
        return only(rate.avg_ts for rate in rows if rate.n_gen == n_gen)

    def _batch(self, case: Case, file: ModelFile) -> float:
        tool = self._tool(self.batched, "llama-batched-bench")
        n_ctx = case.n_seq * (case.depth + case.n_tokens)
        arguments = ["-m", file.path, "-t", str(self.n_threads), "-c", str(n_ctx)]
        arguments += ["-npp", str(case.depth), "-ntg", str(case.n_tokens), "-npl", str(case.n_seq)]
        rows = parse_batched(output_of([tool, *arguments, "--output-format", "jsonl"]))
        return only(row.speed_tg for row in rows if row.pl == case.n_seq)

    def _tool(self, path: Path | None, tool: str) -> Path:
        if path is None:
            raise Skipped(f"no {tool} given")
        return path


@dataclass(frozen=True, slots=True)
class PythonPeer:
    """llama-cpp-python in an environment of its own.  Satisfies `bench.case.Contender`."""

    name: str
    n_threads: int
    python: Path

    def measure(self, case: Case, file: ModelFile) -> Mapping[Metric, float]:
        """One sample; Skipped but for prompts and single sequences, and where it fails."""
        match case.kind:
            case Kind.PROMPT:
                sizes = (0, case.n_tokens, 0)
            case Kind.DECODE:
                sizes = (case.depth, 0, case.n_tokens)
            case Kind.BATCH | Kind.START | Kind.OVERHEAD:
                raise Skipped("llama-cpp-python decodes one sequence; use llama.cpp's own tools")
        text = output_of([self.python, SCRIPT, file.path, str(self.n_threads), *map(str, sizes)])
        try:
            return {TOKENS_PER_S: float(text)}
        except ValueError as exc:
            raise Skipped(f"its output is no number: {text[:80]!r}") from exc


def find_peer(text: str, n_threads: int) -> Peer | PythonPeer:
    """NAME=PATH: a folder with the tools, its llama-bench, or a python that can import llama_cpp.

    BenchError when there is nothing to run.
    """
    name, _, place = text.partition("=")
    path = Path(place).expanduser()
    if not name or not place:
        raise BenchError(f"--peer {text}: write NAME=PATH, PATH being a folder with llama-bench in it")
    if path.name.startswith("python") and path.is_file():
        return PythonPeer(name, n_threads, path)
    folder = path if path.is_dir() else path.parent
    bench = folder / "llama-bench" if path.is_dir() else path
    if not bench.is_file():
        raise BenchError(f"--peer {text}: {bench} does not exist")
    tools = {tool: folder / tool for tool in ("llama-batched-bench", "llama-server")}
    found = {tool: place if place.is_file() else None for tool, place in tools.items()}
    return Peer(name, n_threads, bench, found["llama-batched-bench"], found["llama-server"])


def parse_bench(text: str) -> list[BenchRow]:
    """What llama-bench -o json prints.  Skipped when it is something else."""
    return _decode_rows(text, list[BenchRow])


def parse_batched(text: str) -> list[BatchedRow]:
    """What llama-batched-bench --output-format jsonl prints: a JSON object on lines of their own."""
    lines = (line for line in text.splitlines() if line.startswith("{"))
    return _decode_rows("[" + ",".join(lines) + "]", list[BatchedRow])


def _decode_rows(text: str, kind: type[list[Row]]) -> list[Row]:
    try:
        return msgspec.json.decode(text[max(0, text.find("[")) :], type=kind)
    except msgspec.DecodeError as exc:
        raise Skipped(f"its output cannot be read ({exc}): {text[:80]!r}") from exc


def only(values: Iterable[float]) -> float:
    """The one value there is; Skipped when there are more or less."""
    found = list(values)
    if len(found) != 1:
        raise Skipped(f"its tool gave {len(found)} results, one was asked for")
    return found[0]


def output_of(command: Sequence[Path | str]) -> str:
    """What a tool prints; Skipped with its last words when it fails or takes too long."""
    absolute = [part.absolute() if isinstance(part, Path) else part for part in command]
    try:
        with tempfile.TemporaryDirectory() as folder:  # ik_llama.cpp leaves a log where it is started
            done = subprocess.run(
                absolute, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
    except subprocess.TimeoutExpired as exc:
        raise Skipped(f"{Path(command[0]).name} took longer than {TIMEOUT_S:.0f} s") from exc
    except OSError as exc:
        raise Skipped(f"{command[0]} cannot be started: {exc.strerror}") from exc
    if done.returncode != 0:
        last = " | ".join(done.stderr.strip().splitlines()[-LAST_LINES:])
        raise Skipped(f"{Path(command[0]).name} ended with code {done.returncode}: {last}")
    return done.stdout
