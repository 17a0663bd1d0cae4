"""Asking a model over HTTP and printing its answer as it comes."""

import shutil
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TextIO

import click
import msgspec

from actors.cli.http import Http, Json
from actors.cli.words import go_duration
from actors.cli.wrap import Wrapper
from actors.errors import RequestError
from actors.options import OptionValue

DIM, PLAIN = "\x1b[90m", "\x1b[0m"
# C0 and C1 but for line feed and tab: a model's text must not command the terminal
CONTROLS = dict.fromkeys((*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)))

Turn = dict[str, str]


@dataclass
class Settings:
    """How to ask and how to print."""

    model: str
    options: dict[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    system: str = ""
    format: object = None  # "json", a schema, or None
    keep_alive: str | None = None
    think: bool | str | None = None
    hide_thinking: bool = False
    is_verbose: bool = False
    is_wrapped: bool = True

    def body(self, rest: Mapping[str, object]) -> dict[str, object]:
        """The request, without what is not set."""
        known: dict[str, object] = {
            "model": self.model,
            "options": self.options or None,
            "format": self.format,
            "keep_alive": self.keep_alive,
            "think": self.think,
            **rest,
        }
        return {key: value for key, value in known.items() if value is not None}


class Printer:
    """Prints an answer: wrapped and with thoughts greyed on a terminal, as it is elsewhere."""

    def __init__(self, settings: Settings, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._hide_thinking = settings.hide_thinking
        width = shutil.get_terminal_size().columns
        self._wrapper = Wrapper(width) if settings.is_wrapped and self._is_terminal else None
        self._is_thinking = False
        self.content: list[str] = []

    def show(self, item: Json) -> None:
        """Print one item of a chat or a generate stream."""
        message: Json = item.get("message") or item
        thinking = str(message.get("thinking") or "")
        text = str(message.get("content") or message.get("response") or "")
        if thinking and not self._hide_thinking:
            if not self._is_thinking:
                self._is_thinking = True
                self._style(DIM)
                self._write("Thinking...\n")
            self._write(thinking)
        if text:
            self.stop_thinking()
            self.content.append(text)
            self._write(text)
        calls = message.get("tool_calls")
        if calls:
            self.stop_thinking()
            self._write(msgspec.json.encode(calls).decode())

    def stop_thinking(self) -> None:
        """End the greyed part, if there is one."""
        if self._is_thinking:
            self._is_thinking = False
            self._write("\n...done thinking.\n\n")
            self._style(PLAIN)

    def end(self) -> None:
        """Print what is held back, and the line's end."""
        self.stop_thinking()
        self._put((self._wrapper.flush() if self._wrapper else "") + "\n")

    def _style(self, code: str) -> None:
        if self._is_terminal:
            self._put((self._wrapper.flush() if self._wrapper else "") + code)

    def _write(self, text: str) -> None:
        if self._is_terminal:
            text = text.translate(CONTROLS)
        self._put(self._wrapper.feed(text) if self._wrapper else text)

    def _put(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def ask(http: Http, settings: Settings, turns: list[Turn]) -> str:
    """Chat: print the answer to these turns, give its text.  KeyboardInterrupt stops the model."""
    body = settings.body({"messages": turns, "stream": True})
    return _print_stream(http, "/api/chat", settings, body)


def complete(http: Http, settings: Settings, prompt: str) -> str:
    """Generate: one prompt, one answer."""
    body = settings.body({"prompt": prompt, "system": settings.system or None, "stream": True})
    return _print_stream(http, "/api/generate", settings, body)


def load(http: Http, settings: Settings) -> Json:
    """Have the model loaded; the answer when it is."""
    return http.post("/api/generate", settings.body({"prompt": "", "stream": False}), timeout_s=None)


def _print_stream(http: Http, path: str, settings: Settings, body: Mapping[str, object]) -> str:
    printer = Printer(settings, sys.stdout)
    last: Json = {}
    try:
        with closing(http.stream(path, body)) as items:
            for item in items:
                printer.show(item)
                last = item
    finally:
        if printer.content or last:
            printer.end()
    if not last.get("done"):
        raise RequestError(
            "the answer broke off", where="cli", mend="ask again; see 'runtime ps' and the log"
        )
    if settings.is_verbose:
        click.echo(f"\n{summary(last)}", err=True)
    return "".join(printer.content)


def summary(last: Json) -> str:
    """Counts and speeds of an answer, in the form in which everyone quotes them."""
    lines: list[tuple[str, str]] = []
    for key in ("total", "load"):
        if ns := last.get(f"{key}_duration", 0):
            lines += [(f"{key} duration", go_duration(ns))]
    for key in ("prompt_eval", "eval"):
        count, ns = last.get(f"{key}_count", 0), last.get(f"{key}_duration", 0)
        name = key.replace("_", " ")
        if count:
            lines.append((f"{name} count", f"{count} token(s)"))
        if ns:
            lines.append((f"{name} duration", go_duration(ns)))
            lines.append((f"{name} rate", f"{count / (ns / 1e9):.2f} tokens/s"))
    return "\n".join(f"{name + ':':<22}{value}" for name, value in lines)
