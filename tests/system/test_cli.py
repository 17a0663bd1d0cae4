"""The command line against a real runtime: real processes, real sockets, the built-in model."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from actors.gateway.library.builtin import BUILTIN_FILE

ROOT = Path(__file__).parents[2]
CLI = (sys.executable, "-m", "actors.cli.main")
START_S = 60.0
COMMAND_S = 120.0


class Shell:
    """Runs commands with settings of its own: a folder for everything and a free port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.env = {
            **os.environ,
            "HOME": str(folder),
            "RUNTIME_RUN_DIR": str(folder / "run"),
            "OLLAMA_MODELS": str(folder / "models"),
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "COLUMNS": "80",
            "TERM": "xterm",
        }

    def run(self, *args: str, text: str | None = None, rc: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `runtime ARGS` with this standard input; its exit code must be `rc`."""
        done = subprocess.run(
            [*CLI, *args],
            env=self.env,
            cwd=ROOT,
            input=text or "",
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == rc, done.stdout + done.stderr
        return done

    def is_up(self) -> bool:
        """Whether HTTP answers."""
        try:
            return httpx.get(f"{self.url}/api/version", trust_env=False).is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell beside a runtime that `runtime up` started."""
    shell = Shell(tmp_path_factory.mktemp("cli"))
    with (shell.folder / "log").open("wb") as log:
        up = subprocess.Popen([*CLI, "up"], env=shell.env, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + START_S
        while not shell.is_up():
            assert up.poll() is None, (shell.folder / "log").read_text()
            assert time.monotonic() < deadline_s, (shell.folder / "log").read_text()
            select.select([], [], [], 0.05)
        yield shell
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(START_S)


@pytest.fixture
def alone(tmp_path: Path) -> Shell:
    """A shell with no runtime."""
    return Shell(tmp_path)


def test_list_shows_the_built_in_model(shell: Shell) -> None:
    lines = shell.run("list").stdout.splitlines()
    assert re.fullmatch(r"NAME +ID +SIZE +MODIFIED", lines[0])
    assert re.search(
        r"^handbook:latest {4}[0-9a-f]{12} {4}[\d.]+ MB {4}.+ ago$", "\n".join(lines), re.MULTILINE
    )


def test_every_listing_is_json_when_asked(shell: Shell) -> None:
    shell.run("run", "handbook", "")
    for command in ("list", "ps", "ps --layers", "show handbook", "plan handbook", "why handbook"):
        assert json.loads(shell.run(*command.split(), "--json").stdout)


def test_show_has_sections_and_parts(shell: Shell) -> None:
    assert "  Capabilities\n    completion" in shell.run("show", "handbook").stdout
    assert "FROM " in shell.run("show", "handbook", "--modelfile").stdout
    assert "has no license" in shell.run("show", "handbook", "--license", rc=1).stderr


def test_a_question_is_answered_in_plain_text(shell: Shell) -> None:
    done = shell.run("run", "handbook", "What are you?", "--verbose")
    assert done.stdout.strip()
    assert "\x1b" not in done.stdout
    assert re.search(r"^eval rate: {12}[\d.]+ tokens/s$", done.stderr, re.MULTILINE)


def test_standard_input_is_the_prompt(shell: Shell) -> None:
    assert shell.run("run", "handbook", text="What are you?\n").stdout.strip()


def test_a_plan_is_what_the_load_then_takes(shell: Shell) -> None:
    plan = json.loads(shell.run("plan", "handbook", "--json").stdout)
    shell.run("run", "handbook", "")
    [loaded] = json.loads(shell.run("ps", "--layers", "--json").stdout)["models"]

    def planned(report: dict[str, list[dict[str, object]]]) -> list[object]:
        return [[device["weights"], device["cache"], device["graph"]] for device in report["devices"]]

    def bytes_of(value: object) -> list[int]:
        if isinstance(value, dict):
            return [value["planned_bytes"]]
        return [n for part in value for n in bytes_of(part)] if isinstance(value, list) else []

    assert bytes_of(planned(plan["report"])) == bytes_of(planned(loaded["report"]))


def test_the_layers_of_a_loaded_model_are_shown_and_fit_a_terminal(shell: Shell) -> None:
    shell.run("run", "handbook", "")
    for command in (["ps", "--layers"], ["ps", "--layers", "--sum"], ["plan", "handbook"], ["list"]):
        text = shell.run(*command).stdout
        assert max(map(len, text.splitlines())) <= 80, text
    assert "output" in shell.run("ps", "--layers").stdout


def test_why_tells_the_last_load_in_words_and_numbers(shell: Shell) -> None:
    shell.run("run", "handbook", "")
    said = shell.run("why", "handbook").stdout
    assert re.match(r"handbook:latest: loaded after [\d.]+ s, begun .+\nloaded on cpu \(\d+ layers\)", said)
    assert re.search(r"^cpu +.+ [GM]iB +.+ [GM]iB$", said, re.MULTILINE)
    assert re.search(r"^alloc +\d+ +accept +cpu +\d+ +[\d.]+ MiB +.+ [GM]iB$", said, re.MULTILINE)
    assert re.search(r"^handbook:latest at n_ctx \d+ needs .+ free$", said, re.MULTILINE)
    assert "no-such" in shell.run("why", "no-such-model", rc=1).stderr


def test_stop_unloads(shell: Shell) -> None:
    shell.run("run", "handbook", "")
    assert "handbook:latest" in shell.run("ps").stdout
    shell.run("stop", "handbook")
    deadline_s = time.monotonic() + 10
    while "handbook:latest" in shell.run("ps").stdout:
        assert time.monotonic() < deadline_s


def test_a_model_lives_from_create_to_rm(shell: Shell, tmp_path: Path) -> None:
    shell.run("create", "mine", "-f", str(BUILTIN_FILE))
    (tmp_path / "Modelfile").write_text('FROM mine\nSYSTEM "Be kind."\nPARAMETER temperature 0\n')
    shell.run("create", "kind", "-f", str(tmp_path / "Modelfile"))
    assert shell.run("show", "kind", "--system").stdout == "Be kind.\n"
    assert shell.run("run", "kind", "What are you?").stdout.strip()
    shell.run("cp", "kind", "jo/copy:v1")
    assert "jo/copy:v1" in shell.run("ls").stdout
    assert shell.run("rm", "kind", "jo/copy:v1", "mine").stdout.count("deleted '") == 3
    assert [model["name"] for model in json.loads(shell.run("list", "--json").stdout)["models"]] == [
        "handbook:latest"
    ]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["run", "nope", "hi"], "Error: model 'nope' not found"),
        (["rm", "nope"], "Error: model 'nope' not found"),
        (["show", "nope"], "Error: model 'nope' not found"),
        (["plan", "nope"], "Error: model 'nope' not found"),
        (["rm", "handbook"], "Error: handbook:latest comes with the runtime and cannot be deleted"),
        (["create", "x", "-f", "README-no.md"], "Error: Invalid value"),
        (["cp", "handbook", "../x"], "Error: invalid model name"),
    ],
)
def test_errors_are_one_line_and_exit_1(shell: Shell, args: list[str], error: str) -> None:
    stderr = shell.run(*args, rc=1).stderr
    assert error in stderr
    assert "Traceback" not in stderr


def test_a_truncated_file_is_refused_by_name_and_leaves_nothing(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(BUILTIN_FILE.read_bytes()[:1000])
    before = set((shell.folder / "models").rglob("*"))
    done = shell.run("create", "short", "-f", str(tmp_path / "short.gguf"), rc=1)
    assert done.stderr.splitlines()[-1].startswith("Error: short.gguf, byte 8: ")
    assert set((shell.folder / "models").rglob("*")) - before <= {shell.folder / "models" / "blobs"}


def test_a_pipe_that_closes_is_no_error(shell: Shell) -> None:
    command = f"{' '.join(CLI)} list | true"
    done = subprocess.run(
        ["bash", "-c", command], env=shell.env, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["list", "ps", "show x", "rm x", "stop x", "run x hi"])
def test_a_runtime_that_is_not_up_is_named(alone: Shell, command: str) -> None:
    stderr = alone.run(*command.split(), rc=1).stderr
    assert stderr == f"Error: could not connect to the runtime at {alone.url}; start it with 'runtime up'\n"


def test_run_up_without_a_terminal_asks_one_question_and_leaves_nothing_running(alone: Shell) -> None:
    done = alone.run("run", "--up")
    question, _, answer = done.stdout.partition("\n")
    assert question == ">>> What are you?"
    assert answer.strip()
    assert not alone.is_up()
    assert not list((alone.folder / "run").glob("*.sock"))


def processes_of(shell: Shell) -> list[str]:
    """Command lines of the living processes of this shell's runtime."""
    mark = f"RUNTIME_RUN_DIR={shell.folder / 'run'}".encode()
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


def wait_no_processes(shell: Shell) -> None:
    deadline_s = time.monotonic() + START_S
    while left := processes_of(shell):
        assert time.monotonic() < deadline_s, left
        select.select([], [], [], 0.05)


def test_run_up_leaves_nothing_running_when_it_is_killed(alone: Shell) -> None:
    chat = Terminal(alone, "run", "--up")
    chat.wait_for(">>> ")
    chat.close()
    wait_no_processes(alone)


def test_run_up_leaves_nothing_running_when_it_is_interrupted_while_starting(alone: Shell) -> None:
    chat = Terminal(alone, "run", "--up")
    chat.wait_for("starting the runtime")
    chat.process.send_signal(signal.SIGINT)
    assert chat.process.wait(START_S) == 130
    wait_no_processes(alone)
    assert "Traceback" not in chat.seen
    chat.close()


def test_run_up_does_not_wait_for_an_idle_pipe(alone: Shell) -> None:
    idle, held = os.pipe()
    try:
        done = subprocess.run(
            [*CLI, "run", "--up"], env=alone.env, cwd=ROOT, stdin=idle, capture_output=True, timeout=COMMAND_S
        )
    finally:
        os.close(idle)
        os.close(held)
    assert done.returncode == 0, done.stderr


def _heed_interrupts() -> None:
    """As at a terminal: what a shell puts in the background ignores them, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A chat on a pseudo terminal."""

    def __init__(self, shell: Shell, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*CLI, *args],
            env=shell.env,
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until this is seen; what came with it."""
        deadline_s = time.monotonic() + COMMAND_S
        while (found := re.search(pattern, self.seen, re.DOTALL)) is None:
            assert time.monotonic() < deadline_s, self.seen
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    raise AssertionError(self.seen) from None
        self.seen = self.seen[found.end() :]
        return found[0]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(shell: Shell) -> Iterator[Terminal]:
    made = Terminal(shell, "run", "handbook")
    yield made
    made.close()


def test_a_chat_answers_obeys_and_leaves(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type("What are you?\r")
    terminal.wait_for(r"\n[^\n]*\w{3,}.*>>> ")
    terminal.type("/show info\r")
    terminal.wait_for("architecture")
    terminal.type("/set parameter seed 7\r")
    terminal.wait_for("Set parameter 'seed' to '7'")
    terminal.wait_for(">>> ")
    terminal.type("/bye\r")
    assert terminal.process.wait(30) == 0


def test_ctrl_d_leaves_and_ctrl_c_does_not(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type("\x03")
    terminal.wait_for("Use Ctrl-D or /bye to leave")
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


def test_the_doctor_asks_the_runtime_that_is_up(shell: Shell) -> None:
    text = shell.run("doctor").stdout
    assert "as the runtime that is up sees it" in text
    assert re.search(r"^    cpu +.+ free of .+$", text, re.MULTILINE)
    report = json.loads(shell.run("doctor", "--json").stdout)
    assert report["devices"][0]["id"] == "cpu"
    assert [library["library"] for library in report["libraries"]] == ["cuda", "rocm", "sim", "cpu"]


def test_the_doctor_needs_no_runtime(alone: Shell) -> None:
    text = alone.run("doctor").stdout
    assert "no runtime is up here" in text
    assert "is looked at again" not in text


@pytest.mark.parametrize(
    ("arguments", "variables", "named"),
    [
        (["--n-ctx", "8k"], {}, '--n-ctx is "8k"'),
        ([], {"RUNTIME_GPU_OVERHEAD": "lots"}, 'RUNTIME_GPU_OVERHEAD is "lots"'),
        ([], {"OLLAMA_SCHED_SPREAD": "flase"}, 'OLLAMA_SCHED_SPREAD is "flase"'),
    ],
)
def test_a_setting_that_cannot_be_used_stops_the_start_and_is_named(
    alone: Shell, arguments: list[str], variables: dict[str, str], named: str
) -> None:
    alone.env |= variables
    assert named in alone.run("up", *arguments, rc=1).stderr


def test_a_wrong_key_in_the_file_stops_the_start_and_is_named(alone: Shell) -> None:
    (alone.folder / "c.toml").write_text("n_ctxx = 5\n")
    error = alone.run("up", "--config", str(alone.folder / "c.toml"), rc=1).stderr
    assert "n_ctxx" in error
    assert "c.toml" in error
