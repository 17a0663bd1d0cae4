"""Peers by their own tools: what these print is read right, and what they cannot do is said."""

import json
from pathlib import Path

import pytest

from bench.case import TOKENS_PER_S, Case, Kind, Skipped
from bench.files import ModelFile
from bench.peers import Peer, find_peer, only, output_of, parse_batched, parse_bench
from bench.shapes import SHAPES
from bench.vocabulary import BenchError

FILE = ModelFile(Path("model.gguf"), SHAPES["tiny"], "Q4_0", "synthetic")
PROMPT_ROW = {"n_prompt": 512, "n_gen": 0, "avg_ns": 5, "avg_ts": 102.5, "samples_ts": [102.5]}
DECODE_ROW = {"n_prompt": 0, "n_gen": 32, "n_depth": 0, "avg_ts": 26.5, "samples_ts": [26.5]}
BATCHED_LINE = '{"n_kv_max": 1024, "pp": 16, "tg": 8, "pl": 4, "speed_pp": 84.09, "speed_tg": 43.25}'


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def bench_that_prints(folder: Path, rows: object, help_: str = "") -> None:
    """A llama-bench that writes its arguments down."""
    (folder / "rows.json").write_text(json.dumps(rows))
    tool(
        folder,
        "llama-bench",
        f'[ "$1" = --help ] && echo "{help_}" && exit\n'
        f'echo "$@" > {folder}/arguments\necho warning >&2\ncat {folder}/rows.json',
    )


def test_the_results_of_llama_bench_are_found_behind_other_output() -> None:
    text = "warning: no GPU\n" + json.dumps([PROMPT_ROW, DECODE_ROW], indent=2)
    assert [(row.n_gen, row.avg_ts) for row in parse_bench(text)] == [(0, 102.5), (32, 26.5)]


def test_the_results_of_batched_bench_are_its_json_lines() -> None:
    (row,) = parse_batched(f"\nmain: starting\n{BATCHED_LINE}\n\n")
    assert (row.pl, row.speed_tg) == (4, 43.25)


@pytest.mark.parametrize("text", ["", "error: no such model", '[{"n_gen": 1}]', "[1]", "["])
def test_other_output_is_said_to_be_unreadable(text: str) -> None:
    with pytest.raises(Skipped, match="cannot be read"):
        parse_bench(text)


@pytest.mark.parametrize("values", [[], [1.0, 2.0]])
def test_one_result_is_wanted(values: list[float]) -> None:
    with pytest.raises(Skipped, match=f"{len(values)} results"):
        only(values)


def test_a_folder_of_tools_is_a_peer(tmp_path: Path) -> None:
    tool(tmp_path, "llama-bench", "exit 0")
    tool(tmp_path, "llama-server", "exit 0")
    peer = find_peer(f"it={tmp_path}", 2)
    assert isinstance(peer, Peer)
    assert (peer.name, peer.bench, peer.batched) == ("it", tmp_path / "llama-bench", None)
    assert peer.server == tmp_path / "llama-server"
    assert find_peer(f"it={tmp_path}/llama-bench", 2) == peer


@pytest.mark.parametrize("text", ["it", "=place", "it=", "it=/nowhere"])
def test_a_peer_that_is_not_there_is_refused_by_name(text: str) -> None:
    with pytest.raises(BenchError, match=f"--peer {text}"):
        find_peer(text, 2)


def test_a_prompt_is_measured_with_the_threads_asked_for(tmp_path: Path) -> None:
    bench_that_prints(tmp_path, [PROMPT_ROW])
    found = find_peer(f"it={tmp_path}", 3).measure(Case(Kind.PROMPT, 512), FILE)
    assert found == {TOKENS_PER_S: 102.5}
    model = Path("model.gguf").absolute()  # the tool runs in a folder of its own
    assert (tmp_path / "arguments").read_text() == f"-m {model} -t 3 -r 1 -o json -p 512 -n 0\n"


@pytest.mark.parametrize(
    ("help_", "wanted"),
    [("-d, --n-depth <n>", "-p 0 -n 32 -d 4096"), ("-gp <pp,tg>", "-p 0 -n 0 -gp 4096,32")],
)
def test_a_filled_cache_is_asked_for_in_the_words_the_tool_knows(
    tmp_path: Path, help_: str, wanted: str
) -> None:
    bench_that_prints(tmp_path, [DECODE_ROW], help_)
    find_peer(f"it={tmp_path}", 1).measure(Case(Kind.DECODE, 32, 4096), FILE)
    assert (tmp_path / "arguments").read_text().strip().endswith(wanted)


def test_a_tool_without_words_for_a_filled_cache_is_skipped_by_name(tmp_path: Path) -> None:
    bench_that_prints(tmp_path, [DECODE_ROW])
    with pytest.raises(Skipped, match="no -d, no -gp"):
        find_peer(f"it={tmp_path}", 1).measure(Case(Kind.DECODE, 32, 4096), FILE)


def test_a_batch_is_measured_by_batched_bench(tmp_path: Path) -> None:
    tool(tmp_path, "llama-bench", "exit 1")
    tool(tmp_path, "llama-batched-bench", f"echo '{BATCHED_LINE}'")
    found = find_peer(f"it={tmp_path}", 1).measure(Case(Kind.BATCH, 8, 16, 4), FILE)
    assert found == {TOKENS_PER_S: 43.25}


@pytest.mark.parametrize("case", [Case(Kind.BATCH, 8, 16, 4), Case(Kind.START, 1)])
def test_what_a_peer_has_no_tool_for_is_skipped(tmp_path: Path, case: Case) -> None:
    tool(tmp_path, "llama-bench", "exit 1")
    with pytest.raises(Skipped, match="given"):
        find_peer(f"it={tmp_path}", 1).measure(case, FILE)


def test_a_server_that_ends_is_skipped_with_its_code(tmp_path: Path) -> None:
    tool(tmp_path, "llama-bench", "exit 1")
    tool(tmp_path, "llama-server", "exit 7")
    with pytest.raises(Skipped, match="code 7"):
        find_peer(f"it={tmp_path}", 1).measure(Case(Kind.START, 1), FILE)


def test_a_python_with_bindings_is_a_peer(tmp_path: Path) -> None:
    tool(tmp_path, "python3", f'echo "$@" > {tmp_path}/arguments\necho 12.5')
    peer = find_peer(f"bindings={tmp_path}/python3", 2)
    assert peer.measure(Case(Kind.DECODE, 32, 4096), FILE) == {TOKENS_PER_S: 12.5}
    model = Path("model.gguf").absolute()
    assert (tmp_path / "arguments").read_text().endswith(f"llama_cpp_python.py {model} 2 4096 0 32\n")


def test_bindings_are_not_asked_for_batches(tmp_path: Path) -> None:
    tool(tmp_path, "python3", "echo 12.5")
    with pytest.raises(Skipped, match="one sequence"):
        find_peer(f"bindings={tmp_path}/python3", 2).measure(Case(Kind.BATCH, 8, 16, 4), FILE)


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(Skipped, match=r"sh ended with code 3: .*unsupported type"):
        output_of(["sh", "-c", "echo unsupported type >&2; exit 3"])


def test_a_tool_that_is_not_a_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "llama-bench"
    path.write_text("no program")
    with pytest.raises(Skipped, match="llama-bench cannot be started"):
        output_of([path])
