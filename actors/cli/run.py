"""run: talk to a model, on a terminal or in a script."""

import select
import sys
from contextlib import ExitStack

import click

from actors.cli.context import Cli, pass_cli
from actors.cli.loading import load_with_progress
from actors.cli.talk import Settings, complete
from actors.cli.up import runtime_up
from actors.errors import RequestError

FIRST_QUESTION = "What are you?"
THINK_LEVELS: dict[str, bool | str] = {
    "true": True, "false": False, "low": "low", "medium": "medium", "high": "high"
}  # fmt: skip


@click.command()
@click.argument("model", default="handbook")
@click.argument("prompt", nargs=-1)
@click.option("--up", "start_runtime", is_flag=True, help="Start a runtime for this chat if none is running.")
@click.option("--keepalive", metavar="SPAN", help='How long the model stays loaded: "10m", "1h", 0, -1.')
@click.option("--verbose", is_flag=True, help="Print counts and speeds after each answer.")
@click.option("--nowordwrap", is_flag=True, help="Do not break lines between words.")
@click.option("--format", "form", type=click.Choice(["json"]), help="Have the answer in this form.")
@click.option("--think", type=click.Choice(list(THINK_LEVELS)), help="Whether, or how hard, to think first.")
@click.option("--hidethinking", is_flag=True, help="Do not print thoughts.")
@pass_cli
def run(
    cli: Cli,
    model: str,
    prompt: tuple[str, ...],
    start_runtime: bool,
    keepalive: str | None,
    verbose: bool,
    nowordwrap: bool,
    form: str | None,
    think: str | None,
    hidethinking: bool,
) -> None:
    """Chat with MODEL (the built-in "handbook" if not given), or answer one PROMPT.

    On a terminal, without a PROMPT, this opens a chat; /? lists what it understands.  Elsewhere it prints the
    plain answer to the PROMPT and what standard input says.

    \b
    runtime run                              ask the handbook about this runtime
    runtime run llama3.2 "Why is it blue?"
    runtime run llama3.2 "Sum up:" < file.txt
    """
    settings = Settings(
        model=model,
        format=form,
        keep_alive=keepalive,
        think=THINK_LEVELS[think] if think is not None else None,
        hide_thinking=hidethinking,
        is_verbose=verbose,
        is_wrapped=not nowordwrap,
    )
    with ExitStack() as stack:
        if start_runtime:
            stack.enter_context(runtime_up(cli))
        text = " ".join(prompt)
        if not sys.stdin.isatty():
            text = _joined(text, _read_stdin(may_be_idle=start_runtime))
        elif not text and sys.stdout.isatty():
            from actors.cli.repl import Repl  # the line editor takes 0.1 s to import: not for scripts

            load_with_progress(cli, settings)
            Repl(cli, settings).run()
            return
        if start_runtime and not text:
            text = FIRST_QUESTION
            click.echo(f">>> {text}")
        _answer_once(cli, settings, text, is_given=bool(prompt))


def _answer_once(cli: Cli, settings: Settings, text: str, *, is_given: bool) -> None:
    if not text:
        if not is_given:
            raise RequestError(
                "there is nothing to ask", where="cli", mend="give a prompt, or standard input"
            )
        load_with_progress(cli, settings)  # `run MODEL ""` is how models are loaded ahead
        return
    if sys.stderr.isatty():
        load_with_progress(cli, settings)
    complete(cli.http, settings, text)


def _read_stdin(*, may_be_idle: bool) -> str:
    """Standard input to its end; with `may_be_idle`, nothing if nobody has written to it."""
    if may_be_idle and not select.select([sys.stdin], [], [], 0)[0]:
        return ""  # a build system's open pipe, which would be waited for in vain
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as exc:
        raise RequestError("standard input is not text", where="cli", mend="give text in UTF-8") from exc


def _joined(prompt: str, piped: str) -> str:
    piped = piped.strip()
    return f"{prompt}\n\n{piped}" if prompt and piped else prompt or piped
