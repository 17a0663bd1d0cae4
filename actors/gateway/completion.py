"""From a prompt to a stream of text: lease, tokenise, generate, and go on elsewhere when a runner dies.

The seed is fixed before the first token and randomness is keyed by (seed, position), so a second runner that
is given the tokens delivered so far continues exactly where the first one stopped.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import trio

from actors.errors import PeerGone, RemoteProtocolError, RequestError
from actors.gateway.leases import Leases, OnWait, unheard
from actors.gateway.links import Links
from actors.gateway.metrics import Metrics
from actors.gateway.options import Options
from actors.gateway.trials import Trial, Trials
from actors.link import Link
from actors.protocol import Acquire, Chunk, Finished, Generate, ModelSpec, Tokenize, Tokens

log = logging.getLogger(__name__)

RESUME_S = 0.5  # the scheduler hears of a death at once, but maybe after us
NO_RUNNER_TRIES = 20  # leases at an address where nobody listens any more
TOKENIZE_S = 60.0  # many megabytes of text take seconds

Prompt = str | tuple[int, ...]
OnChunk = Callable[[Chunk], Awaitable[None]]
Tokenizer = Callable[[str, bool], Awaitable[tuple[int, ...]]]


class LeftOut(NamedTuple):
    """What did not fit into the context."""

    n_messages: int = 0
    n_tokens: int = 0


MakePrompt = Callable[[Tokenizer, int], Awaitable[tuple[Prompt, LeftOut]]]


class RunnerLost(PeerGone):
    """A runner died of the request, or none of those that were leased was there."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to generate.  `make_prompt(tokenize, n_ctx)` is called once the model is loaded."""

    model: ModelSpec
    options: Options
    make_prompt: MakePrompt
    keep_alive_s: float | None = None
    n_logprobs: int = -1
    truncate: bool = True
    shift: bool = True

    @property
    def acquire(self) -> Acquire:
        """How the scheduler is asked for it."""
        return Acquire(model=self.model, options=self.options.load, keep_alive_s=self.keep_alive_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation ended: counts and durations over all runners that took part."""

    finished: Finished
    load_s: float
    total_s: float
    left_out: LeftOut  # of the prompt, by us and by the runner


@dataclass(slots=True)
class _Run:
    """What is known of a job so far, whichever runner it is at."""

    prompt: Prompt | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    n_ctx: int = 0  # of the first runner, so that the text does not change with the second
    delivered: list[int] = field(default_factory=list[int])
    is_started: bool = False  # a runner has taken it


class Completions:
    """Runs jobs."""

    def __init__(self, links: Links, leases: Leases, metrics: Metrics, max_repetition: int) -> None:
        """max_repetition: see `Generate`."""
        self._max_repetition = max_repetition
        self._links = links
        self._leases = leases
        self._metrics = metrics
        self._trials = Trials()

    async def load(self, acquire: Acquire) -> None:
        """Have a model loaded, and set how long it stays."""
        async with self._leases.lease(acquire):
            pass

    async def run(self, job: Job, on_chunk: OnChunk, on_wait: OnWait = unheard) -> Outcome:
        """Generate; each chunk is handed to `on_chunk`, and while that waits the sequence pauses.

        `on_wait` hears what is waited for while there is no lease.

        RunnerLost when a second one died of it; what scheduler and runner refuse with, as it is.
        """
        began_s = trio.current_time()
        load_s: float | None = None
        run, n_absent, is_suspect = _Run(), 0, False
        while True:
            async with (
                self._trials.entry(job.model.digest, is_suspect=is_suspect) as trial,
                self._leases.lease(job.acquire, on_wait) as lease,
            ):
                load_s = trio.current_time() - began_s if load_s is None else load_s
                run.is_started = False
                try:
                    async with self._links.use(lease.address) as link:
                        trial.begin(link)
                        finished = await self._generate(link, job, lease.n_ctx, run, trial, on_chunk)
                        break
                except PeerGone as exc:
                    log.warning("runner %s is gone: %s", lease.runner_id, exc.message)
                    n_absent += not run.is_started
                    is_second = run.is_started and trial.is_of_suspect
                    if run.is_started:
                        is_suspect = trial.died()
                    if is_second or n_absent >= NO_RUNNER_TRIES:
                        raise _lost() from exc
            await trio.sleep(RESUME_S)
            if run.is_started:
                self._metrics.resumed()
        self._metrics.finished(finished)
        left_out = LeftOut(run.left_out.n_messages, run.left_out.n_tokens + finished.dropped_tokens)
        return Outcome(finished, load_s, trio.current_time() - began_s, left_out)

    async def _generate(
        self, link: Link, job: Job, n_ctx: int, run: _Run, trial: Trial, on_chunk: OnChunk
    ) -> Finished:
        run.is_started = True
        if run.prompt is None:
            run.n_ctx = n_ctx
            run.prompt, run.left_out = await job.make_prompt(_tokenizer(link), n_ctx)
        request = Generate(
            prompt=run.prompt,
            sampling=job.options.sampling,
            n_predict=job.options.n_predict,
            stop=job.options.stop,
            ignore_eos=job.options.ignore_eos,
            n_keep=job.options.n_keep,
            truncate=job.truncate,
            shift=job.shift,
            n_ctx=run.n_ctx,
            max_repetition=self._max_repetition,
            n_logprobs=job.n_logprobs,
            resume=tuple(run.delivered),
        )
        n_before = len(run.delivered)
        async with link.request(request) as items:
            async for item in items:
                trial.passed()
                match item:
                    case Chunk():
                        run.delivered.extend(item.tokens)
                        await on_chunk(item)
                    case Finished():
                        # this runner counts what it drew itself
                        return msgspec.structs.replace(
                            item, predicted_tokens=item.predicted_tokens + n_before
                        )
                    case _:
                        raise RemoteProtocolError(f"a runner answered Generate with {type(item).__name__}")
        raise RemoteProtocolError("a runner ended Generate without Finished", where="gateway.completion")


def _tokenizer(link: Link) -> Tokenizer:
    async def tokenize(text: str, add_special: bool) -> tuple[int, ...]:
        with trio.move_on_after(TOKENIZE_S):
            return (await link.ask(Tokenize(text=text, add_special=add_special), Tokens)).tokens
        raise RequestError(
            f"the prompt could not be tokenised within {TOKENIZE_S:.0f} s", where="gateway.completion"
        )

    return tokenize


def _lost() -> RunnerLost:
    return RunnerLost(
        "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error",
        where="gateway.completion",
        mend="see the runner's last words in the log",
    )
