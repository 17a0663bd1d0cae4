"""Which templates are tried at all: those in Jinja, of a bounded size."""

from actors.errors import ModelError, RequestError, Unsupported
from actors.modelfile import is_go_template

MAX_TEMPLATE_CHARS = 256 * 1024  # the largest in use are about 30 kB


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


def go_template_error(model: str) -> ModelError:
    """For a model whose only template is a Go one."""
    return Unsupported(
        f"{model} has only a Go template, which this runtime does not run",
        where="template",
        mend=f"create a model from it with a Jinja TEMPLATE: FROM {model}, then TEMPLATE in a Modelfile",
    )
