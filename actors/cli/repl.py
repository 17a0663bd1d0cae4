"""The chat on a terminal: lines in, answers out, commands that begin with a slash."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from actors.cli.context import Cli
from actors.cli.listings import list_text, part_text, show_text
from actors.cli.loading import load_with_progress
from actors.cli.talk import Settings, Turn, ask
from actors.errors import ModelNotFound, PeerGone, RequestError, RuntimeFault
from actors.options import OPTIONS, option_kind, parse_option

PLACEHOLDER = "Send a message (/? for help)"
TRIPLE = '"""'
PARTS = ("license", "modelfile", "parameters", "system", "template")

HELP = """\
Commands:
  /set parameter NAME VALUE   set an option: /set parameter temperature 0.2
  /set system TEXT            set the system text
  /set verbose | quiet        print counts and speeds after answers, or not
  /set wordwrap | nowordwrap  break lines between words, or not
  /set format json | noformat have answers in JSON, or not
  /set think [LEVEL] | nothink  think first, or not
  /show info                  what the model is; also: license, modelfile,
                              parameters, system, template
  /load MODEL                 go on with another model
  /save MODEL                 make a model of this conversation
  /list                       the models of the library
  /clear                      forget the conversation
  /bye                        leave (also Ctrl-D)

Begin and end with \"\"\" to write several lines.  Ctrl-C stops an answer."""


class Leave(Exception):
    """The user has had enough."""


class LineReader(Protocol):
    """Where the user's lines come from."""

    def read(self, *, goes_on: bool) -> str:
        """The next line; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        ...


class Editor:
    """The line editor of a terminal, with a history file."""

    def __init__(self, history_file: Path) -> None:
        self._session: PromptSession[str] = PromptSession(history=_history(history_file))

    def read(self, *, goes_on: bool) -> str:
        """The next line; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""

        def placeholder() -> FormattedText:
            # not in what is left standing once the line is over
            is_shown = not goes_on and not get_app().is_done
            return FormattedText([("fg:ansibrightblack", PLACEHOLDER)] if is_shown else [])

        return self._session.prompt("... " if goes_on else ">>> ", placeholder=placeholder)


class Repl:
    """A conversation with one model at a time."""

    def __init__(self, cli: Cli, settings: Settings, lines: LineReader | None = None) -> None:
        self._cli = cli
        self._settings = settings
        self._lines = lines or Editor(Path.home() / ".ollama" / "runtime_history")
        self.turns: list[Turn] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/list": self._list,
            "/clear": self._clear,
            "/bye": self._bye,
            "/exit": self._bye,
            "/help": self._help,
            "/?": self._help,
        }

    def run(self) -> None:
        """Until /bye or Ctrl-D."""
        while True:
            try:
                text = self.read_message()
                if text.startswith("/"):
                    self.command(text)
                elif text.strip():
                    self._ask(text)
            except (EOFError, Leave):
                return
            except KeyboardInterrupt:
                click.echo("Use Ctrl-D or /bye to leave.")
            except PeerGone:
                raise  # nothing more can come of this chat
            except RuntimeFault as fault:
                click.echo(f"Error: {fault}", err=True)

    def read_message(self) -> str:
        """A line, or all that stands between triple quotes."""
        line = self._lines.read(goes_on=False)
        stripped = line.lstrip()
        if not stripped.startswith(TRIPLE):
            return line
        text = stripped[len(TRIPLE) :]
        while not text.rstrip().endswith(TRIPLE):
            text += "\n" + self._lines.read(goes_on=True)
        return text.rstrip()[: -len(TRIPLE)].strip("\n")

    def command(self, text: str) -> None:
        """Obey a line that begins with a slash; RequestError when it makes no sense."""
        name, _, rest = text.strip().partition(" ")
        obey = self._commands.get(name.lower())
        if obey is None:
            raise RequestError(f"unknown command '{name}'", where="cli", mend="/? lists the commands")
        obey(rest.strip())

    def _ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})
        system: list[Turn] = []
        if self._settings.system:
            system.append({"role": "system", "content": self._settings.system})
        try:
            answer = ask(self._cli.http, self._settings, [*system, *self.turns])
        except KeyboardInterrupt:
            self.turns.pop()  # an answer that was stopped is not one to go on from
            return
        except RuntimeFault:
            self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": answer})
        click.echo()

    def _set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        settings = self._settings
        match what.lower():
            case "parameter":
                self._set_parameter(value)
            case "system":
                settings.system = _unquoted(value)
                click.echo("Set system text.")
            case "verbose" | "quiet":
                settings.is_verbose = what.lower() == "verbose"
                click.echo(f"Set '{what.lower()}' mode.")
            case "wordwrap" | "nowordwrap":
                settings.is_wrapped = what.lower() == "wordwrap"
                click.echo(f"Set '{what.lower()}' mode.")
            case "format" if value.strip() == "json":
                settings.format = "json"
                click.echo("Set format to 'json' mode.")
            case "noformat":
                settings.format = None
                click.echo("Disabled format.")
            case "think":
                settings.think = value.strip() or True
                click.echo("Set 'think' mode.")
            case "nothink":
                settings.think = False
                click.echo("Set 'nothink' mode.")
            case _:
                raise RequestError(f"cannot set '{rest}'", where="cli", mend="/? lists what can be set")

    def _set_parameter(self, text: str) -> None:
        name, *words = text.split()
        if not words:
            kinds = ", ".join(OPTIONS)
            raise RequestError("a parameter takes a value", where="cli", mend=f"parameters are {kinds}")
        value = " ".join(words)
        self._settings.options[name] = parse_option(
            name, [_unquoted(word) for word in words] if option_kind(name) == "strings" else [value]
        )
        click.echo(f"Set parameter '{name}' to '{value}'")

    def _show(self, rest: str) -> None:
        answer = self._cli.http.post("/api/show", {"model": self._settings.model})
        what = rest.lower() or "info"
        if what == "system" and self._settings.system:
            click.echo(self._settings.system)
        elif what == "parameters" and self._settings.options:
            click.echo("\n".join(f"{name:<30} {value}" for name, value in self._settings.options.items()))
        elif what == "info":
            click.echo(show_text(answer))
        elif what in PARTS:
            click.echo(part_text(answer, what, self._settings.model))
        else:
            raise RequestError(
                f"cannot show '{rest}'", where="cli", mend=f"there are info, {', '.join(PARTS)}"
            )

    def _load(self, rest: str) -> None:
        if not rest:
            raise RequestError("/load takes a model", where="cli", mend="/list shows them")
        before = self._settings.model
        self._settings.model = rest
        try:
            load_with_progress(self._cli, self._settings)
        except ModelNotFound:
            self._settings.model = before
            raise
        self.turns.clear()

    def _save(self, rest: str) -> None:
        if not rest:
            raise RequestError("/save takes a name", where="cli")
        body: dict[str, object] = {"model": rest, "from": self._settings.model, "stream": False}
        if self._settings.system:
            body["system"] = self._settings.system
        if self._settings.options:
            body["parameters"] = self._settings.options
        if self.turns:
            body["messages"] = self.turns
        self._cli.http.post("/api/create", body)
        click.echo(f"Created new model '{rest}'")

    def _list(self, _rest: str) -> None:
        click.echo(list_text(self._cli.http.get("/api/tags")["models"] or (), datetime.now(UTC)))

    def _clear(self, _rest: str) -> None:
        self.turns.clear()
        click.echo("Cleared the conversation.")

    def _help(self, _rest: str) -> None:
        click.echo(f"{HELP}\n")

    def _bye(self, _rest: str) -> None:
        raise Leave


def _history(file: Path) -> History:
    """Kept in a file, if one can be kept."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def _unquoted(text: str) -> str:
    for quote in (TRIPLE, '"', "'"):
        if len(text) >= 2 * len(quote) and text.startswith(quote) and text.endswith(quote):
            return text[len(quote) : -len(quote)]
    return text
