"""The Jinja environment that chat templates are written for, made safe.

Templates come with model files, so they are hostile until shown otherwise.  The sandbox keeps them from
Python (no attribute that begins with "_", nothing may be changed); the worker process that renders them
bounds their time and memory.  What they may use follows the conventions of Hugging Face transformers:
https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn, cast

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT_CHARS = 32 << 20  # of a prompt; half of what one frame carries, were every character two bytes

_USED_GLOBALS = frozenset({"range", "dict", "namespace", "cycler", "joiner"})


class TemplateRaised(TemplateError):
    """The template itself refused the conversation, by raise_exception."""


class _Generation(Extension):
    """{% generation %}..{% endgeneration %} marks what training learns from; for us it is its body."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares an instance attribute of this type

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def make_environment(now: Callable[[], datetime] = datetime.now) -> ImmutableSandboxedEnvironment:
    """A sandbox with what templates expect: raise_exception, strftime_now, tojson, break and continue."""

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    # lipsum and the like make text out of nothing; templates have no use for it
    names = cast("dict[str, object]", environment.globals)  # jinja2 types it by its own entries
    for name in set(names) - _USED_GLOBALS:
        del names[name]
    names |= {"raise_exception": _raise_exception, "strftime_now": strftime_now}
    _filters(environment)["tojson"] = _tojson
    environment.policies["ext.i18n.trimmed"] = False
    return environment


def fault_of(text: str) -> str:
    """What is wrong with a template, with its line; "" when nothing is.

    Only parses.  Compiling would compute constant expressions, which is left to the first rendering.
    """
    environment = make_environment()
    try:
        tree = environment.parse(text)
    except TemplateSyntaxError as exc:
        return f"line {exc.lineno}: {exc.message}"
    except RecursionError:
        return "it nests too deeply"
    for kind, node_type, known in (
        ("filter", nodes.Filter, _filters(environment)),
        ("test", nodes.Test, cast("dict[str, object]", environment.tests)),
    ):
        for node in tree.find_all(node_type):
            if node.name not in known:
                return f"line {node.lineno}: no {kind} named {node.name!r}"
    return ""


def _filters(environment: Environment) -> dict[str, object]:
    return cast("dict[str, object]", environment.filters)


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateRaised(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as is: Jinja's own filter escapes for HTML and sorts keys, which models have never seen."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
