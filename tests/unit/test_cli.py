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
from actors.cli.main import root
from actors.cli.manage import read_source
from actors.cli.repl import Repl
from actors.cli.tables import clean, table
from actors.cli.talk import Printer, Settings, summary
from actors.cli.up import flag_variables
from actors.cli.words import go_duration, human_bytes, human_span, human_time, memory_bytes
from actors.cli.wrap import Wrapper
from actors.config import Config
from actors.errors import ConfigError, ModelNotFound, PeerGone, QueueFull, RequestError, RuntimeFault
from actors.settings import SETTINGS

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


def test_every_setting_has_a_flag_that_names_its_variables() -> None:
    text = click.testing.CliRunner().invoke(root, ["up", "--help"], prog_name="runtime").output
    words = " ".join(text.split())
    for setting in SETTINGS:
        assert f"{setting.flag} {setting.metavar}" in words
        assert f"({setting.names})" in words


def test_a_flag_reaches_the_actors_as_our_own_variable() -> None:
    flags = {"n_ctx": " 8192 ", "keep_alive_s": None, "sim_dir": "/tmp/sim"}
    assert flag_variables(flags) == {"RUNTIME_N_CTX": "8192", "RUNTIME_SIM": "/tmp/sim"}


@pytest.mark.parametrize(
    ("flag", "bad"),
    [("--n-ctx", "8k"), ("--keep-alive", "soon"), ("--host", "h:x"), ("--sim", ""), ("--sched-spread", "2")],
)
def test_a_bad_flag_stops_the_start_and_is_named(flag: str, bad: str) -> None:
    result = click.testing.CliRunner().invoke(root, ["up", flag, bad], prog_name="runtime")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message.startswith(f'{flag} is "')
