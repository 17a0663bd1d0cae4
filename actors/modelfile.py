"""Modelfiles: how a model is described in text.  Parsed by the command line, written by `show`.

    # comment
    FROM ./model.gguf                 a file, or the name of a model
    PARAMETER temperature 0.2
    SYSTEM "one line"
    MESSAGE user Hello

and TEMPLATE and LICENSE.  Instructions ignore case.  A value is the rest of its line, or what stands between
quotes, single or triple, then over several lines if need be.  Nothing is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.errors import RequestError, Unsupported
from actors.options import DEPRECATED, OptionValue, parse_option

ROLES = ("system", "user", "assistant")
TRIPLE = '"""'

_REFUSED = {
    "ADAPTER": "LoRA adapters are not supported",
    "DRAFT": "draft models are not supported",
    "RENDERER": "there are no built-in renderers; give the model a Jinja TEMPLATE",
    "PARSER": "there are no built-in parsers",
    "EMBED": "it was removed from Modelfiles",
}
_PLAIN = re.compile(r"[^\s\"#](?:[^\r\n]*\S)?")
# What Go's text/template actions begin with; none of it is an expression of Jinja
_GO_ACTION = re.compile(r"\{\{-?\s*(?:/\*|\.|\$|(?:if|range|else|end|with|define|block|template)\b)")


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says.  None: it says nothing of that."""

    base: str  # FROM: a path or a name
    template: str | None = None
    system: str | None = None
    license: tuple[str, ...] = ()
    parameters: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Line:
    """One instruction, its value unquoted, and the number of its first line."""

    number: int
    instruction: str
    value: str


def is_go_template(text: str) -> bool:
    """Whether this is a template in Go's language, as Ollama stores them, and not in Jinja."""
    return "{%" not in text and _GO_ACTION.search(text) is not None


def decode_modelfile(data: bytes) -> str:
    """Text of a file in UTF-8, or in UTF-16 if that byte order mark leads; RequestError otherwise."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise RequestError(f"not text in UTF-8 (byte {exc.start})", where="Modelfile") from exc


def parse_modelfile(text: str) -> Modelfile:
    """Read a Modelfile; RequestError "line N: ..." for what is wrong, Unsupported for what is not done."""
    base: str | None = None
    template: str | None = None
    system: str | None = None
    words: dict[str, list[str]] = {}
    licenses: list[str] = []
    messages: list[tuple[str, str]] = []
    warnings: list[str] = []
    for line in _instructions(text):
        match line.instruction:
            case "FROM":
                if base is not None:
                    raise Unsupported(f"line {line.number}: a second FROM; a model is one GGUF file here")
                base = line.value
            case "TEMPLATE":
                template = _template(line)
            case "SYSTEM":
                system = line.value
            case "LICENSE":
                licenses.append(line.value)
            case "PARAMETER":
                name, value = _two_words(line, "a name and a value")
                if name in DEPRECATED:
                    warnings.append(f"line {line.number}: parameter '{name}' has no effect any more")
                else:
                    _parsed(line, name, [value])
                    words.setdefault(name, []).append(value)
            case "MESSAGE":
                messages.append(_message(line))
            case "REQUIRES":
                warnings.append(f"line {line.number}: REQUIRES names a version of Ollama and is ignored")
            case _:
                raise _unknown(line)
    if not base:
        raise RequestError(
            "no FROM line", where="Modelfile", mend="begin with FROM and a GGUF file or a model"
        )
    # a parameter given twice means the last value, except stop, which collects
    parameters = {
        name: parse_option(name, given if name == "stop" else given[-1:]) for name, given in words.items()
    }
    return Modelfile(base, template, system, tuple(licenses), parameters, tuple(messages), tuple(warnings))


def write_modelfile(model: Modelfile, comments: Sequence[str] = ()) -> str:
    """The text that parses to this; a text that holds three quotes is written as well as Modelfiles can."""
    lines = [*(f"# {comment}" for comment in comments), f"FROM {_quoted(model.base)}"]
    if model.template is not None:
        lines.append(f"TEMPLATE {_quoted(model.template)}")
    if model.system is not None:
        lines.append(f"SYSTEM {_quoted(model.system)}")
    lines += [f"PARAMETER {name} {_quoted(word)}" for name, word in parameter_words(model.parameters)]
    lines += [f"MESSAGE {role} {_quoted(content)}" for role, content in model.messages]
    lines += [f"LICENSE {_quoted(text)}" for text in model.license]
    return "\n".join(lines) + "\n"


def parameter_words(parameters: Mapping[str, OptionValue]) -> list[tuple[str, str]]:
    """Each parameter as (name, word); `stop` once for each of its strings."""
    words: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if isinstance(value, list):
            words += [(name, item) for item in value]
        elif isinstance(value, bool):
            words.append((name, str(value).lower()))
        elif isinstance(value, float):
            words.append((name, str(int(value)) if value.is_integer() else repr(value)))
        else:
            words.append((name, str(value)))
    return words


def _instructions(text: str) -> list[_Line]:
    """Take the text apart into instructions with whole values."""
    found: list[_Line] = []
    lines = text.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        instruction, rest = [*line.split(maxsplit=1), ""][:2]
        instruction = instruction.upper()
        # what stands before a quoted text: the name of a parameter, the role of a message
        head, rest = _head(instruction, rest)
        quote = TRIPLE if rest.startswith(TRIPLE) else '"' if rest.startswith('"') else ""
        if quote:
            # the line as it was written: blanks inside quotes count
            first = lines[at - 1]
            value, at = _quoted_value(lines, first[first.index(quote) + len(quote) :], at, quote, number)
        else:
            value = rest.strip()
        found.append(_Line(number, instruction, f"{head} {value}" if head else value))
    return found


def _head(instruction: str, rest: str) -> tuple[str, str]:
    if instruction not in ("PARAMETER", "MESSAGE"):
        return "", rest
    words = rest.split(maxsplit=1)
    return (words[0], words[1]) if len(words) == 2 else ("", rest)


def _quoted_value(lines: list[str], first: str, at: int, quote: str, number: int) -> tuple[str, int]:
    """The value from behind its opening quote to the closing one, and the index of the next line."""
    parts: list[str] = []
    line = first
    while True:
        end = line.find(quote) if quote == TRIPLE else _closing(line)
        if end >= 0:
            behind = line[end + len(quote) :].strip()
            if behind:
                raise RequestError(f"line {at}: {behind[:40]!r} after the closing quotes", where="Modelfile")
            return "\n".join([*parts, line[:end]]), at
        parts.append(line)
        if at == len(lines):
            raise RequestError(f"line {number}: the opening {quote} is never closed", where="Modelfile")
        line = lines[at]
        at += 1


def _closing(line: str) -> int:
    """Where the quote that ends the value is: only at the end of a line, so those inside need no escape."""
    stripped = line.rstrip()
    return len(stripped) - 1 if stripped.endswith('"') else -1


def _two_words(line: _Line, what: str) -> tuple[str, str]:
    head, blank, rest = line.value.partition(" ")
    if not blank or not head:
        raise RequestError(f"line {line.number}: {line.instruction} takes {what}", where="Modelfile")
    return head.lower(), rest


def _message(line: _Line) -> tuple[str, str]:
    role, content = _two_words(line, "a role and a text")
    if role not in ROLES:
        text = f"line {line.number}: {role!r} is no role"
        raise RequestError(text, where="Modelfile", mend=f"use {', '.join(ROLES)}")
    return role, content


def _template(line: _Line) -> str:
    if is_go_template(line.value):
        raise Unsupported(
            f"line {line.number}: TEMPLATE is in Go's template language, which this runtime does not run",
            where="Modelfile",
            mend="write it in Jinja ({% for message in messages %}...), or leave it out",
        )
    return line.value


def _parsed(line: _Line, name: str, words: list[str]) -> None:
    try:
        parse_option(name, words)
    except RequestError as fault:
        raise RequestError(
            f"line {line.number}: {fault.message}", where="Modelfile", mend=fault.mend
        ) from fault


def _unknown(line: _Line) -> RequestError | Unsupported:
    refusal = _REFUSED.get(line.instruction)
    if refusal is not None:
        return Unsupported(f"line {line.number}: {line.instruction}: {refusal}", where="Modelfile")
    return RequestError(
        f"line {line.number}: unknown instruction {line.instruction[:40]!r}",
        where="Modelfile",
        mend="known are FROM, PARAMETER, SYSTEM, TEMPLATE, MESSAGE, LICENSE",
    )


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    if TRIPLE not in text and not text.endswith('"'):
        return f"{TRIPLE}{text}{TRIPLE}"
    if not any(line.rstrip().endswith('"') for line in text.split("\n")[:-1]) and not text.startswith('""'):
        return f'"{text}"'
    return f"{TRIPLE}{text}{TRIPLE}"
