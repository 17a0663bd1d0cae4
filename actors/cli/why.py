"""why: the scheduler's last decision about a model, in words and numbers."""

from collections.abc import Iterator
from datetime import UTC, datetime

import click
import msgspec

from actors.cli.context import Cli, pass_cli, say_json
from actors.cli.memory import CPU
from actors.cli.tables import clean, table
from actors.cli.words import human_time, memory_bytes
from actors.errors import RequestError
from actors.protocol import (
    EvictionCandidate,
    EvictionRound,
    Explanation,
    LayoutRound,
    LoadDecision,
    LoadOptions,
)

N_DECISIONS = 12  # the latest, in the text; --json has all that are remembered


@click.command()
@click.argument("model")
@click.option("--json", "is_json", is_flag=True, help="Print JSON, in bytes and seconds.")
@pass_cli
def why(cli: Cli, model: str, is_json: bool) -> None:
    """Say why MODEL is where it is, or why it is not loaded.

    Shows its latest load: the free memory of each device at the time, the rounds of the layout, who was
    considered for eviction and who left, and how it went.
    """
    answer = cli.ask(lambda client: client.why(model))
    if is_json:
        say_json(answer)
        return
    if not answer.loads and not answer.decisions:
        raise RequestError(
            f"nothing was decided about {model} since the scheduler started",
            where="cli",
            mend=f"load it: runtime run {model}",
        )
    click.echo(why_text(answer, datetime.now(UTC)))


def why_text(answer: Explanation, now: datetime) -> str:
    """The latest load with its tables, then the decisions as sentences."""
    blocks = [block for load in answer.loads for block in _load_blocks(load, now)]
    if answer.decisions:
        blocks.append("\n".join(clean(line) for line in answer.decisions[-N_DECISIONS:]))
    return "\n\n".join(blocks)


def _load_blocks(load: LoadDecision, now: datetime) -> Iterator[str]:
    began = human_time(datetime.fromtimestamp(load.began_at, UTC), now)
    yield (
        f"{clean(load.model.name)}: {load.outcome} after {load.took_s:.2f} s, begun {began}\n"
        f"{clean(load.message)}{_asked_text(load.options)}"
    )
    if load.devices:
        rows = [
            (device.id, device.name, memory_bytes(device.free_bytes), memory_bytes(device.total_bytes))
            for device in load.devices
        ]
        yield table(("DEVICE", "NAME", "FREE", "TOTAL"), rows)
    if load.rounds:
        yield table(
            ("ASKED", "CONTEXT", "THEN", "DEVICE", "LAYERS", "NEEDS", "OF FREE"),
            [row for each in load.rounds for row in _round_rows(each)],
        )
        yield clean(load.rounds[-1].reason)
    for eviction in load.evictions:
        yield _eviction_text(eviction)


def _asked_text(options: LoadOptions) -> str:
    """The options that the request named."""
    left_open = msgspec.structs.asdict(LoadOptions())
    named = msgspec.structs.asdict(options).items()
    asked = [f"{key} {value}" for key, value in named if value != left_open[key]]
    return f"\nasked for {', '.join(asked)}" if asked else ""


def _round_rows(each: LayoutRound) -> Iterator[tuple[str, ...]]:
    """A line for the host and each device that is used; the first says what was asked and what followed."""
    n_layers = {part.device: len(part.layers) for part in each.placement}
    head = (each.question, str(each.n_ctx), each.outcome)
    for device, need_bytes in each.need_bytes.items():
        if need_bytes or device == CPU:
            layers = str(n_layers.get(device, 0)) if n_layers else "all"
            free_bytes = each.free_bytes.get(device, 0)
            yield (*head, device, layers, memory_bytes(need_bytes), memory_bytes(free_bytes))
            head = ("",) * len(head)


def _eviction_text(eviction: EvictionRound) -> str:
    what = (
        f"{memory_bytes(eviction.shortage_bytes)} lacking on {eviction.device}"
        if eviction.device
        else "a place lacking under max_loaded"
    )
    rows = [
        (
            one.name,
            memory_bytes(_held_bytes(one, eviction.device)),
            "busy" if not one.is_idle else f"{one.idle_s:.1f} s",
            f"{one.reload_s:.1f} s",
            "kept for ever" if one.is_pinned else f"{one.cost:.3g}",
            "leaves" if one.is_chosen else "stays",
        )
        for one in eviction.candidates
    ]
    head = f"{what}: {clean(eviction.outcome)}"
    if not rows:
        return head
    return f"{head}\n{table(('MODEL', 'HOLDS', 'IDLE', 'RELOAD', 'COST', ''), rows)}"


def _held_bytes(one: EvictionCandidate, device: str) -> int:
    """What its leaving would win: of the device, or of all where a place is what lacks."""
    return one.held_bytes.get(device, 0) if device else sum(one.held_bytes.values())
