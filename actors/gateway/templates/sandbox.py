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

from actors.errors import ModelError, RequestError, Unsupported
from actors.modelfile import is_go_template

MAX_TEMPLATE_CHARS = 256 * 1024  # the largest in use are about 30 kB
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


def check_language(text: str) -> None:
    """Raise RequestError for a template that is too large, Unsupported for one in Go's language."""
    if len(text) > MAX_TEMPLATE_CHARS:
        raise RequestError(
            f"the template has {len(text)} characters, {MAX_TEMPLATE_CHARS} are allowed", where="template"
        )
    if is_go_template(text):
        raise Unsupported(
            "the template is written in Go's template language",
            where="template",
            mend="write it in Jinja ({% for message in messages %}...), or leave TEMPLATE out",
        )


def check_template(text: str) -> None:
    """Raise RequestError, with the line, for what is no template; as check_language besides.

    Only parses, in milliseconds.  Compiling would compute constant expressions: the worker's job.
    """
    check_language(text)
    environment = make_environment()
    try:
        tree = environment.parse(text)
    except TemplateSyntaxError as exc:
        raise RequestError(f"template line {exc.lineno}: {exc.message}", where="template") from exc
    except RecursionError as exc:
        raise RequestError("the template nests too deeply", where="template") from exc
    for kind, node_type, known in (
        ("filter", nodes.Filter, _filters(environment)),
        ("test", nodes.Test, cast("dict[str, object]", environment.tests)),
    ):
        for node in tree.find_all(node_type):
            if node.name not in known:
                raise RequestError(
                    f"template line {node.lineno}: no {kind} named {node.name!r}", where="template"
                )


def go_template_error(model: str) -> ModelError:
    """For a model whose only template is a Go one."""
    return Unsupported(
        f"{model} has only a Go template, which this runtime does not run",
        where="template",
        mend=f"create a model from it with a Jinja TEMPLATE: FROM {model}, then TEMPLATE in a Modelfile",
    )


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
