"""The process that renders templates: `python -m actors.gateway.templates.worker`, jobs in, outcomes out.

Once it is up it says so with an Outcome.  Then it reads a frame (u32 length, MessagePack) with a Job from
standard input, answers with an Outcome on standard output, and goes on until standard input ends.  A template
may loop for ever or ask for all memory: the system stops this process then, by its alarm and its
address-space limit, and the gateway starts another.
"""

import resource
import signal
import sys
from functools import lru_cache

import msgspec
from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from actors.gateway.templates.jobs import LENGTH, RENDER_LIMIT_S, Job, Outcome
from actors.gateway.templates.sandbox import MAX_OUTPUT_CHARS, fault_of, make_environment

SUICIDE_S = 2 * RENDER_LIMIT_S  # the gateway kills at RENDER_LIMIT_S; this is for when it is gone
MEMORY_BYTES = 1 << 30  # address space: jinja2 takes 100 MB, the longest prompts some tens
KEPT_TEMPLATES = 16

_environment = make_environment()


@lru_cache(maxsize=KEPT_TEMPLATES)
def compile_template(text: str) -> Template:
    """Compile, keeping the last few."""
    return _environment.from_string(text)


def render(job: Job) -> Outcome:
    """Render in this process; every failure of the template becomes an Outcome with `error`."""
    try:
        if job.only_check:
            return Outcome(error=_first_line(fault)) if (fault := fault_of(job.template)) else Outcome()
        pieces: list[str] = []
        n_chars = 0
        for piece in compile_template(job.template).generate(job.variables):
            n_chars += len(piece)
            if n_chars > MAX_OUTPUT_CHARS:
                return Outcome(error=f"it makes more than {MAX_OUTPUT_CHARS} characters")
            pieces.append(piece)
        # a literal like "\ud800" is no text that could be sent
        return Outcome(text="".join(pieces).encode(errors="replace").decode())
    except MemoryError:
        return Outcome(error="it takes too much memory")
    except RecursionError:
        return Outcome(error="it nests or recurses too deeply")
    except SecurityError as exc:
        return Outcome(error=_first_line(f"it is not allowed to: {exc}"))
    except TemplateSyntaxError as exc:
        return Outcome(error=_first_line(f"line {exc.lineno}: {exc.message}"))
    except TemplateError as exc:
        return Outcome(error=_first_line(str(exc)))
    except Exception as exc:  # noqa: BLE001  # a template can provoke any error of the operations it is made of
        return Outcome(error=_first_line(f"{type(exc).__name__}: {exc}"))


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which then closes our input
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decode = msgspec.msgpack.Decoder(Job).decode
    _answer(Outcome(text="ready"))
    while len(head := sys.stdin.buffer.read(LENGTH.size)) == LENGTH.size:
        job = decode(sys.stdin.buffer.read(LENGTH.unpack(head)[0]))
        signal.setitimer(signal.ITIMER_REAL, SUICIDE_S)  # SIGALRM's default action: die
        outcome = render(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(outcome)


def _answer(outcome: Outcome) -> None:
    body = msgspec.msgpack.encode(outcome)
    sys.stdout.buffer.write(LENGTH.pack(len(body)) + body)
    sys.stdout.buffer.flush()


def _first_line(text: str) -> str:
    text = text.strip().encode(errors="replace").decode()
    line = text.splitlines()[0] if text else "no reason given"
    return line if len(line) <= 500 else line[:497] + "..."


if __name__ == "__main__":
    main()
