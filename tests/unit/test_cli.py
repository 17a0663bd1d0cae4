"""The command line's words, tables and parts, without a runtime."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click.testing
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from actors.cli.context import Cli
from actors.cli.http import Http, Json
from actors.cli.listings import list_text, part_text, ps_text, show_text
from actors.cli.main import client_url, root
from actors.cli.manage import read_source
from actors.cli.memory import loaded_text, plan_text
from actors.cli.repl import Repl
from actors.cli.tables import clean, table
from actors.cli.talk import Printer, Settings, summary
from actors.cli.why import why_text
from actors.cli.words import go_duration, human_bytes, human_span, human_time, memory_bytes
from actors.cli.wrap import Wrapper
from actors.config import Config
from actors.errors import ModelNotFound, PeerGone, QueueFull, RequestError, RuntimeFault
from actors.protocol import (
    Device,
    DeviceMemory,
    EvictionCandidate,
    EvictionRound,
    Explanation,
    LayerPlacement,
    LayoutRound,
    LoadDecision,
    LoadedModel,
    LoadOptions,
    LoadPlan,
    MemoryItem,
    MemoryReport,
    ModelSpec,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 KB"),
        (2000, "2 KB"),
        (4_661_224_676, "4.7 GB"),
        (12_345_678, "12 MB"),
    ],
)
def test_sizes_of_lists_are_decimal(n: int, text: str) -> None:
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0"), (512, "512 B"), (319_488, "312.0 KiB"), (1 << 30, "1.0 GiB")]
)
def test_memory_is_binary(n: int, text: str) -> None:
    assert memory_bytes(n) == text


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "Less than a second"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=59), "59 seconds"),
        (timedelta(seconds=61), "About a minute"),
        (timedelta(minutes=4, seconds=59), "4 minutes"),
        (timedelta(hours=1), "About an hour"),
        (timedelta(hours=30), "30 hours"),
        (timedelta(days=5), "5 days"),
        (timedelta(days=20), "2 weeks"),
        (timedelta(days=90), "3 months"),
        (timedelta(days=800), "2 years"),
    ],
)
def test_spans_are_told_in_their_largest_unit(span: timedelta, text: str) -> None:
    assert human_span(span) == text


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (timedelta(days=-2), "2 days ago"),
        (timedelta(minutes=4), "4 minutes from now"),
        (timedelta(days=36500), "Forever"),
    ],
)
def test_moments_are_told_from_now(offset: timedelta, text: str) -> None:
    assert human_time(NOW + offset, NOW) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (130_079_000, "130.079ms"),
        (1_500_000_000, "1.5s"),
        (62_300_000_000, "1m2.3s"),
        (3_600_000_000_000, "1h0m0s"),
        (1_234_567_891, "1.234567891s"),
    ],
)
def test_durations_are_printed_as_go_prints_them(ns: int, text: str) -> None:
    assert go_duration(ns) == text


def test_a_table_is_left_aligned_with_four_blanks() -> None:
    assert table(("NAME", "ID"), [("a", "1"), ("långer", "22")]) == "NAME      ID\na         1\nlånger    22"


def test_a_table_closes_up_where_the_terminal_is_narrow() -> None:
    rows = [("handbook:latest", "de66318e8be0", "42 MB", "100% CPU", "1024", "4 minutes from now")]
    text = table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows, 80)
    assert max(map(len, text.splitlines())) == 76


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("NAME", "ID"), []) == "NAME    ID"


def test_columns_of_wide_characters_line_up() -> None:
    lines = table(("A", "B"), [("模型", "x"), ("ab", "y")]).splitlines()
    assert {cell_len(line.rstrip()[:-1]) for line in lines[1:]} == {8}


def test_names_cannot_command_the_terminal() -> None:
    assert clean("a\x1b[2J\nb") == "a�[2J�b"


def tag(name: str, **rest: object) -> Json:
    return {"name": name, "digest": "0123456789abcdef", "size": 4_661_224_676, **rest}


def test_the_list() -> None:
    text = list_text([tag("llama3:latest", modified_at="2026-11-20T12:00:00.123456789Z")], NOW)
    assert text == (
        "NAME             ID              SIZE      MODIFIED\n"
        "llama3:latest    0123456789ab    4.7 GB    2 days ago"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("vram", "expires_at", "processor", "until"),
    [
        (0, "2026-11-22T12:04:00.5Z", "100% CPU", "4 minutes from now"),
        (4_661_224_676, "2318-11-22T12:00:00Z", "100% GPU", "Forever"),
        (2_423_836_831, "2026-11-22T11:00:00Z", "48%/52% CPU/GPU", "Stopping..."),
    ],
)
def test_the_table_of_ps(vram: int, expires_at: str, processor: str, until: str) -> None:
    text = ps_text([tag("m:latest", size_vram=vram, expires_at=expires_at, context_length=4096)], NOW)
    assert [cell.strip() for cell in text.splitlines()[1].split("    ") if cell.strip()] == [
        "m:latest", "0123456789ab", "4.7 GB", processor, "4096", until
    ]  # fmt: skip


def test_ps_says_how_far_a_load_is_and_who_waits_for_what() -> None:
    loading = tag("m:latest", expires_at="2026-11-22T12:04:00Z", context_length=4096, status="reading 37 %")
    waiting = [
        {"name": "m:latest", "status": "reading 37 %"},
        {"name": "n:latest", "status": "evicting o:1b", "requests_before": 2},
    ]
    rows = [line.split("    ") for line in ps_text([loading], NOW, waiting).splitlines()[1:]]
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [
        ("m:latest", "reading 37 %"),
        ("n:latest", "evicting o:1b, 2 before it"),
    ]


MIB = 1 << 20
DECISION = LoadDecision(
    model=ModelSpec("m:latest", "sha256:m", "/m", 1),
    options=LoadOptions(n_ctx=2048),
    began_at=NOW.timestamp() - 90,
    took_s=1.5,
    outcome="loaded",
    message="loaded on gpu:0 (3 layers)",
    devices=(Device("gpu:0", "cuda", "A card", 2000 * MIB, 1000 * MIB),),
    rounds=(
        LayoutRound(
            "fit", (), 2048, {"gpu:0": 100 * MIB}, {"gpu:0": 600 * MIB}, "evict", "gpu:0 lacks 500 MiB"
        ),
        LayoutRound(
            "alloc",
            (LayerPlacement("gpu:0", (0, 1, 2)),),
            2048,
            {"gpu:0": 1000 * MIB},
            {"gpu:0": 600 * MIB, "cpu": 0},
            "accept",
            "600 MiB of 1000 MiB on gpu:0",
        ),
    ),
    evictions=(
        EvictionRound(
            "gpu:0",
            500 * MIB,
            (
                EvictionCandidate("o:1b", 7.5, 2.0, {"gpu:0": 600 * MIB}, 0.27, True, False, True),
                EvictionCandidate("p:1b", 0.0, 2.0, {"gpu:0": 600 * MIB}, 9.0, False, False, False),
                EvictionCandidate("q:1b", 9.0, 2.0, {"gpu:0": 600 * MIB}, 0.2, True, True, False),
            ),
            "evicting o:1b",
        ),
    ),
)


def test_why_tells_the_figures_the_rounds_and_who_left() -> None:
    said = why_text(Explanation(("2026-11-22 m:latest took 1.50 s to load",), (DECISION,)), NOW)
    blocks = [[line.split("    ") for line in block.splitlines()] for block in said.split("\n\n")]
    cells = [[[cell.strip() for cell in row if cell.strip()] for row in block] for block in blocks]
    assert cells == [
        [
            ["m:latest: loaded after 1.50 s, begun About a minute ago"],
            ["loaded on gpu:0 (3 layers)"],
            ["asked for n_ctx 2048"],
        ],
        [["DEVICE", "NAME", "FREE", "TOTAL"], ["gpu:0", "A card", "1000.0 MiB", "2.0 GiB"]],
        [
            ["ASKED", "LAYERS", "CONTEXT", "NEEDS", "OF FREE", "THEN"],
            ["fit", "all on cpu", "2048", "600.0 MiB", "100.0 MiB", "evict"],
            ["alloc", "3 on gpu:0", "2048", "600.0 MiB", "1000.0 MiB", "accept"],
        ],
        [["600 MiB of 1000 MiB on gpu:0"]],
        [
            ["500.0 MiB lacking on gpu:0: evicting o:1b"],
            ["MODEL", "HOLDS", "IDLE", "RELOAD", "COST"],
            ["o:1b", "600.0 MiB", "7.5 s", "2.0 s", "0.27", "leaves"],
            ["p:1b", "600.0 MiB", "busy", "2.0 s", "9", "stays"],
            ["q:1b", "600.0 MiB", "9.0 s", "2.0 s", "kept for ever", "stays"],
        ],
        [["2026-11-22 m:latest took 1.50 s to load"]],
    ]


SHOWN: Json = {
    "details": {"parameter_size": "8.0B", "quantization_level": "Q4_K_M"},
    "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
    "capabilities": ["completion", "tools"],
    "parameters": 'stop                           "<|eot|>"\ntemperature                    0.2',
    "system": "one\ntwo\nthree\nfour",
    "tensors": [{"name": "output.weight", "type": "Q6_K", "shape": [4, 2]}],
}


def test_show_prints_one_part_at_a_time() -> None:
    done = click.testing.CliRunner().invoke(root, ["show", "m", "--license", "--system"])
    assert (done.exit_code != 0, "only one of --license" in done.output) == (True, True)


def test_show_has_its_sections() -> None:
    text = show_text(SHOWN)
    assert "  Model\n    architecture      llama\n    parameters        8.0B" in text
    assert "  Capabilities\n    completion\n    tools\n" in text
    assert '    stop           "<|eot|>"' in text
    assert "three\n    ..." in text
    assert "Tensors" not in text
    assert "output.weight" in show_text(SHOWN, verbose=True)


def test_a_part_that_a_model_lacks_is_named() -> None:
    assert part_text(SHOWN, "system", "m") == "one\ntwo\nthree\nfour"
    with pytest.raises(RequestError, match="m has no license"):
        part_text(SHOWN, "license", "m")


def item(n: int) -> MemoryItem:
    return MemoryItem(planned_bytes=n, measured_bytes=n, status="allocated")


REPORT = MemoryReport(
    devices=(
        DeviceMemory(
            id="cpu", name="A CPU", weights=(item(1 << 20), item(1 << 20), item(3 << 20)),
            cache=(item(1 << 19), item(1 << 19)), graph=item(1 << 10), overhead=item(0),
        ),
    ),
    input_weights=item(2 << 20), n_layer=2, n_ctx=4096, n_ctx_train=8192, n_batch=512, n_parallel=4,
    kv_type="q8_0",
)  # fmt: skip
SPEC = ModelSpec("m:latest", "sha256:0", "/m.gguf", 1)


def test_layers_show_planned_beside_measured_and_the_sums() -> None:
    text = loaded_text(LoadedModel(SPEC, LoadOptions(), "1", 1, REPORT, None, 0), is_summed=False)
    assert (
        "m:latest: 2 layers, batch 512\n4 x 4096 positions (trained for 8192), q8_0 cache\n\ncpu (A CPU)\n\n"
        in text
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "1.0", "MiB", "1.0", "MiB", "512.0", "KiB", "512.0", "KiB"] in rows
    assert ["output", "3.0", "MiB", "3.0", "MiB", "0", "0"] in rows
    assert ["cpu", "weights", "5.0", "MiB", "5.0", "MiB", "allocated"] in rows
    assert ["total", "8.0", "MiB", "8.0", "MiB", "allocated"] in rows
    assert max(map(len, text.splitlines())) <= 80


def test_runs_of_equal_layers_can_be_summed() -> None:
    text = loaded_text(LoadedModel(SPEC, LoadOptions(), "1", 1, REPORT, None, 0), is_summed=True)
    assert ["0-1", "2.0", "MiB", "2.0", "MiB", "1.0", "MiB", "1.0", "MiB"] in [
        line.split() for line in text.splitlines()
    ]


def test_a_plan_ends_with_its_verdict() -> None:
    plan = LoadPlan(
        report=REPORT, placement=(LayerPlacement("cpu", (0, 1, 2)),), fits=True, verdict="it fits: 8.0 MiB",
        devices=(Device("cpu", "cpu", "A CPU", 1 << 31, 1 << 30),),
    )  # fmt: skip
    text = plan_text("m", plan, is_summed=False)
    assert "cpu (A CPU): 1.0 GiB free" in text
    assert "MEASURED" not in text
    assert text.endswith("it fits: 8.0 MiB")


@given(st.lists(st.text(st.sampled_from("ab é模 \n"), max_size=12)), st.integers(4, 20))
def test_wrapping_changes_nothing_but_blanks_and_keeps_lines_short(pieces: list[str], width: int) -> None:
    wrapper = Wrapper(width)
    shown = "".join(wrapper.feed(piece) for piece in pieces) + wrapper.flush()
    text = "".join(pieces)
    assert "".join(shown.split()) == "".join(text.split())
    longest = max((cell_len(word) for word in text.split()), default=0)
    if longest < width:
        assert all(cell_len(line.strip()) <= width for line in shown.split("\n"))


def test_a_short_text_is_not_changed_by_wrapping() -> None:
    wrapper = Wrapper(80)
    assert wrapper.feed("  one  two\n\n  three ") + wrapper.flush() == "  one  two\n\n  three "


def test_a_long_line_breaks_between_words() -> None:
    wrapper = Wrapper(10)
    assert wrapper.feed("hello my world") + wrapper.flush() == "hello my\nworld"


class Terminal(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def printed(out: io.StringIO, *items: Json, hide_thinking: bool = False) -> str:
    printer = Printer(Settings("m", hide_thinking=hide_thinking), out)
    for one in items:
        printer.show(one)
    printer.end()
    return out.getvalue()


def test_an_answer_is_printed_plain_into_a_pipe() -> None:
    assert (
        printed(io.StringIO(), {"response": "a\x1b[1m "}, {"response": "b", "done": True}) == "a\x1b[1m b\n"
    )


def test_an_answer_cannot_command_the_terminal() -> None:
    assert printed(Terminal(), {"message": {"content": "a\x1b[2J\x9b1mb👩‍🚀"}}) == "a[2J1mb👩‍🚀\n"


def test_thoughts_are_set_apart() -> None:
    items = ({"message": {"thinking": "hm"}}, {"message": {"content": "yes"}})
    assert printed(io.StringIO(), *items) == "Thinking...\nhm\n...done thinking.\n\nyes\n"
    assert printed(Terminal(), *items) == "\x1b[90mThinking...\nhm\n...done thinking.\n\n\x1b[0myes\n"
    assert printed(io.StringIO(), *items, hide_thinking=True) == "yes\n"


def test_the_summary_has_the_form_that_everyone_quotes() -> None:
    last = {
        "total_duration": 5_191_566_416, "load_duration": 2_154_458, "prompt_eval_count": 26,
        "prompt_eval_duration": 130_079_000, "eval_count": 298, "eval_duration": 4_799_921_000,
    }  # fmt: skip
    assert summary(last) == (
        "total duration:       5.191566416s\n"
        "load duration:        2.154458ms\n"
        "prompt eval count:    26 token(s)\n"
        "prompt eval duration: 130.079ms\n"
        "prompt eval rate:     199.88 tokens/s\n"
        "eval count:           298 token(s)\n"
        "eval duration:        4.799921s\n"
        "eval rate:            62.08 tokens/s"
    )


def http_answering(handler: httpx.MockTransport) -> Http:
    http = Http("http://test")
    http._client = httpx.Client(base_url="http://test", transport=handler)
    return http


def answer(status: int, text: str) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _request: httpx.Response(status, text=text))


@pytest.mark.parametrize(
    ("status", "text", "kind", "shown"),
    [
        (404, '{"error":"model \'x\' not found"}', ModelNotFound, "model 'x' not found; see 'runtime list'"),
        (400, '{"error":"invalid model name"}', RequestError, "invalid model name"),
        (503, '{"error":"server busy"}', QueueFull, "server busy"),
        (500, "<html>", RuntimeFault, "500 Internal Server Error"),
        (200, "<html>", RuntimeFault, "the server's answer is not JSON: b'<html>'; check OLLAMA_HOST"),
    ],
)
def test_errors_of_the_server_are_told_in_its_words(
    status: int, text: str, kind: type[RuntimeFault], shown: str
) -> None:
    with pytest.raises(kind) as caught:
        http_answering(answer(status, text)).get("/api/tags")
    assert str(caught.value) == shown


def test_an_error_in_the_middle_of_a_stream_is_raised() -> None:
    http = http_answering(answer(200, '{"response":"a"}\n{"error":"the runner died"}\n'))
    items = http.stream("/api/generate", {})
    assert next(items) == {"response": "a"}
    with pytest.raises(RuntimeFault, match="the runner died"):
        next(items)


def test_a_runtime_that_is_not_up_is_named_with_how_to_start_it() -> None:
    http = Http("http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(PeerGone) as caught:
        http.get("/api/tags")
    assert str(caught.value) == (
        "could not connect to the runtime at http://127.0.0.1:9; start it with 'runtime up'"
    )
    http.close()


@pytest.mark.parametrize(
    ("ollama_host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("https://box", "https://box:443"),
        ("box:1", "http://box:1"),
        ("[::]:5", "http://[::1]:5"),
    ],
)
def test_the_address_of_the_runtime_is_ollamas(ollama_host: str, url: str) -> None:
    assert client_url(Config(), ollama_host) == url


def test_a_gguf_file_is_its_own_modelfile(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert read_source(tmp_path / "m.gguf").base == str(tmp_path / "m.gguf")


def test_an_error_in_a_modelfile_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM x\nNONSENSE\n")
    with pytest.raises(RequestError, match="Modelfile: line 2: unknown instruction"):
        read_source(tmp_path / "Modelfile")


def test_a_file_that_is_neither_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(bytes(100))
    with pytest.raises(RequestError, match="neither GGUF nor a Modelfile"):
        read_source(tmp_path / "m.bin")


class Typed:
    """Lines as a user would type them, then Ctrl-D."""

    def __init__(self, *lines: str) -> None:
        self._lines = list(lines)

    def read(self, *, goes_on: bool) -> str:
        if not self._lines:
            raise EOFError
        return self._lines.pop(0)


def chat(http: Http, *lines: str) -> Repl:
    cli = Cli(Config(), "http://test")
    cli.__dict__["http"] = http
    repl = Repl(cli, Settings("m"), Typed(*lines))
    repl.run()
    return repl


def test_a_chat_remembers_its_turns(capsys: pytest.CaptureFixture[str]) -> None:
    said = '{"message":{"role":"assistant","content":"yes"},"done":true}\n'
    repl = chat(http_answering(answer(200, said)), "hello", '"""two', 'lines"""', "/bye", "not read")
    assert [turn["content"] for turn in repl.turns] == ["hello", "yes", "two\nlines", "yes"]
    assert capsys.readouterr().out == "yes\n\nyes\n\n"


def test_a_failed_answer_leaves_no_turn(capsys: pytest.CaptureFixture[str]) -> None:
    repl = chat(http_answering(answer(500, '{"error":"out of luck"}')), "hello")
    assert repl.turns == []
    assert "Error: out of luck" in capsys.readouterr().err


def test_commands_change_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    repl = chat(
        http_answering(answer(200, "{}")),
        "/set parameter temperature 0.5", "/set parameter stop a b", '/set system "Be kind."', "/set verbose",
        "/set nonsense", "/nonsense", "/set parameter nope 1", "/?",
    )  # fmt: skip
    settings = repl._settings
    assert settings.options == {"temperature": 0.5, "stop": ["a", "b"]}
    assert (settings.system, settings.is_verbose) == ("Be kind.", True)
    said = capsys.readouterr()
    assert said.err.count("Error: ") == 3
    assert "unknown parameter 'nope'" in said.err
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize("command", [[], *[[name] for name in root.commands]])
def test_help_fits_a_terminal_and_says_what_each_command_does(command: list[str]) -> None:
    result = click.testing.CliRunner().invoke(root, [*command, "--help"], prog_name="runtime")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert (
        all(option.help for option in root.commands[command[0]].params if isinstance(option, click.Option))
        if command
        else True
    )


@pytest.mark.parametrize(("alias", "command"), [("serve", "up"), ("ls", "list")])
def test_commands_have_ollamas_other_names(alias: str, command: str) -> None:
    assert root.get_command(click.Context(root), alias) is root.commands[command]
