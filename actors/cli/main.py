"""The command `runtime`."""

import os
import sys

import click

from actors.cli import doctor, listings, manage, memory, run, up, why
from actors.cli.context import Cli
from actors.config import http_address, load_config
from actors.errors import RuntimeFault
from actors.version import VERSION

INTERRUPTED = 130  # what a shell gives a command that SIGINT ended
ALIASES = {"serve": "up", "start": "up", "ls": "list"}

EPILOG = """\
\b
Five minutes to your own model:
  runtime up &                          serves http://127.0.0.1:11434
  runtime run                           ask the built-in model about it
  runtime create mine -f FILE.gguf      add your own
  runtime plan mine --num-ctx 8192      what memory it would take
  runtime run mine

Complete commands with Tab:  eval "$(_RUNTIME_COMPLETE=bash_source runtime)"
(zsh_source and fish_source for those shells) in your shell's start-up file.
"""


class Commands(click.Group):
    """Commands in the order of use, and their second names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """By either name."""
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(VERSION, "-v", "--version", prog_name="runtime")
@click.pass_context
def root(ctx: click.Context) -> None:
    """A local LLM runtime: your GGUF models, served like Ollama and OpenAI do.

    RUNTIME_HOST, else OLLAMA_HOST, says where the runtime is (127.0.0.1:11434 if unset).
    """
    config = load_config(None, os.environ)
    ctx.obj = Cli(config=config, url=http_address(config, os.environ).url)


for command in (
    up.up, run.run, listings.list_models, listings.show, listings.ps, memory.plan, why.why,
    manage.create, manage.stop, manage.cp, manage.rm, doctor.doctor,
):  # fmt: skip
    root.add_command(command)


def main() -> int:
    """Run a command; the exit code."""
    try:
        code = root.main(prog_name="runtime", standalone_mode=False)
        sys.stdout.flush()
    except RuntimeFault as fault:
        click.echo(f"Error: {fault}", err=True)
        return 1
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message())
        return 0
    except click.ClickException as exc:
        exc.show()
        return 1
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read us has enough; the interpreter must not complain when it flushes at exit
        _drop_stdout()
        return 0
    except OSError as exc:  # a full disk behind the output, a file that cannot be read
        click.echo(f"Error: {exc}", err=True)
        _drop_stdout()
        return 1
    return code if isinstance(code, int) else 0


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
