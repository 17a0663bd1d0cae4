"""plan, and the tables of memory per device and layer.

All numbers are the runner's own; nothing is computed here but sums.
"""

from collections.abc import Iterable, Sequence

import click

from actors.cli.context import Cli, pass_cli, say_json
from actors.cli.tables import clean, table
from actors.cli.words import memory_bytes
from actors.protocol import (
    ContextChoice,
    DeviceMemory,
    LoadedModel,
    LoadOptions,
    LoadPlan,
    MemoryItem,
    MemoryReport,
)

Row = tuple[str, ...]
CPU = "cpu"  # the id of host memory


@click.command()
@click.argument("model", default="handbook")
@click.option("--num-ctx", type=click.IntRange(min=1), help="Positions one sequence may use.")
@click.option("--num-gpu", type=click.IntRange(min=0), help="Layers on GPUs; as many as fit if not given.")
@click.option("--parallel", type=click.IntRange(min=1), help="Sequences at once.")
@click.option("--num-batch", type=click.IntRange(min=1), help="Tokens in one forward pass.")
@click.option("--sum", "is_summed", is_flag=True, help="One row for each run of equal layers.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON, in bytes.")
@click.pass_context
@pass_cli
def plan(
    cli: Cli,
    ctx: click.Context,
    model: str,
    num_ctx: int | None,
    num_gpu: int | None,
    parallel: int | None,
    num_batch: int | None,
    is_summed: bool,
    is_json: bool,
) -> None:
    """Say exactly what memory loading MODEL would take, without loading it.

    The numbers are those of the real load: the runner lays everything out as for a load, and stops there.
    Exits 0 if the model fits beside what is loaded now, 1 if not.
    """
    options = LoadOptions(
        n_ctx=num_ctx or 0,
        n_batch=num_batch or 0,
        n_gpu=-1 if num_gpu is None else num_gpu,
        n_parallel=parallel or 0,
    )
    answer = cli.ask(lambda client: client.plan(model, options))
    if is_json:
        say_json(answer)
    else:
        click.echo(plan_text(model, answer, is_summed=is_summed))
    if not answer.fits:
        ctx.exit(1)


def plan_text(name: str, answer: LoadPlan, *, is_summed: bool) -> str:
    """The tables of `plan`: each device by layer, the free memory beside the sums, the verdict."""
    free = {device.id: device.free_bytes for device in answer.devices}
    return "\n\n".join(
        [
            _head(name, answer.report),
            *(
                block
                for device in answer.report.devices
                for block in (
                    _title(device, f"{memory_bytes(free[device.id])} free" if device.id in free else ""),
                    _layers(device, is_summed=is_summed, is_measured=False),
                )
            ),
            _sums(answer.report, is_measured=False),
            *([_contexts(answer)] if answer.contexts else []),
            clean(answer.verdict),
        ]
    )


def _contexts(answer: LoadPlan) -> str:
    """The trade: what each context takes, and whether the model would still run at full speed."""
    has_gpus = any(device.id != CPU and device.is_usable for device in answer.devices)
    header: Row = ("CONTEXT", "GPU LAYERS", "CACHE", "TOTAL", "FULL SPEED")
    if not has_gpus:
        header = ("CONTEXT", "CACHE", "TOTAL", "FITS")

    def row(choice: ContextChoice) -> Row:
        layers = (f"{choice.n_offloaded} of {answer.report.n_layer + 1}",) if has_gpus else ()
        verdict = "yes" if choice.is_full_speed else "no"
        sizes = (memory_bytes(choice.cache_bytes), memory_bytes(choice.total_bytes))
        return (
            str(choice.n_ctx),
            *layers,
            *sizes,
            f"{verdict}, taken" if choice.is_chosen else verdict,
        )

    return table(header, [row(choice) for choice in answer.contexts])


def loaded_text(model: LoadedModel, *, is_summed: bool) -> str:
    """The tables of `ps --layers` for one model."""
    blocks = [_head(model.model.name, model.report)]
    if model.progress is not None:
        blocks.append(f"loading: {model.progress}")
    for device in model.report.devices:
        blocks += [_title(device, ""), _layers(device, is_summed=is_summed, is_measured=True)]
    blocks.append(_sums(model.report, is_measured=True))
    if model.report.failure:
        blocks.append(f"failed: {clean(model.report.failure)}")
    return "\n\n".join(blocks)


def _head(name: str, report: MemoryReport) -> str:
    return (
        f"{clean(name)}: {report.n_layer} layers, batch {report.n_batch}, {report.kv_type} cache\n"
        f"context {report.n_ctx} (trained for {report.n_ctx_train}); "
        f"{report.n_parallel} sequences share {report.n_cells} cells"
    )


def _title(device: DeviceMemory, note: str) -> str:
    name = f" ({clean(device.name)})" if device.name and device.name != device.id else ""
    return f"{clean(device.id)}{name}{': ' if note else ''}{note}"


def _layers(device: DeviceMemory, *, is_summed: bool, is_measured: bool) -> str:
    """Weights and cache of each layer that is on this device; the output layer is the last index."""
    n_layer = max(len(device.weights), len(device.cache)) - 1
    layers = [
        (index, _at(device.weights, index), _at(device.cache, index))
        for index in range(n_layer + 1)
        if _at(device.weights, index).planned_bytes or _at(device.cache, index).planned_bytes
    ]
    header: Row = ("LAYER", "WEIGHTS", "MEASURED", "CACHE", "MEASURED")
    if not is_measured:
        header = ("LAYER", "WEIGHTS", "CACHE")
    rows = [
        (_label(first, last, n_layer), *_cells(weights, is_measured), *_cells(cache, is_measured))
        for first, last, weights, cache in (
            _runs(layers) if is_summed else ((i, i, w, c) for i, w, c in layers)
        )
    ]
    return table(header, rows)


def _runs(
    layers: Iterable[tuple[int, MemoryItem, MemoryItem]],
) -> list[tuple[int, int, MemoryItem, MemoryItem]]:
    """Neighbouring layers of the same size as one, with their sums."""
    runs: list[list[tuple[int, MemoryItem, MemoryItem]]] = []
    for layer in layers:
        if runs and runs[-1][-1][0] == layer[0] - 1 and runs[-1][-1][1:] == layer[1:]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [
        (
            run[0][0],
            run[-1][0],
            _total(weights for _, weights, _ in run),
            _total(cache for _, _, cache in run),
        )
        for run in runs
    ]


def _sums(report: MemoryReport, *, is_measured: bool) -> str:
    """One line for each kind of memory on each device, and all of it."""
    rows: list[tuple[str, str, MemoryItem]] = []
    for device in report.devices:
        kinds = (
            ("weights", _total(device.weights)),
            ("cache", _total(device.cache)),
            ("graph", device.graph),
            ("overhead", device.overhead),
        )
        rows += [(device.id, kind, item) for kind, item in kinds]
    rows.append(("", "input weights", report.input_weights))
    rows.append(("", "total", _total(item for _, _, item in rows)))
    header: Row = (
        ("DEVICE", "MEMORY", "PLANNED", "MEASURED", "STATUS")
        if is_measured
        else ("DEVICE", "MEMORY", "PLANNED")
    )
    cells: list[Row] = []
    for device_id, kind, item in rows:
        status = (item.status,) if is_measured else ()
        cells.append((device_id, kind, *_cells(item, is_measured), *status))
    return table(header, cells)


def _at(items: Sequence[MemoryItem], index: int) -> MemoryItem:
    return items[index] if index < len(items) else MemoryItem(planned_bytes=0)


def _label(first: int, last: int, n_layer: int) -> str:
    if first == n_layer:
        return "output"
    return str(first) if first == last else f"{first}-{last}"


def _cells(item: MemoryItem, is_measured: bool) -> Row:
    planned = memory_bytes(item.planned_bytes)
    return (planned, memory_bytes(item.measured_bytes)) if is_measured else (planned,)


def _total(items: Iterable[MemoryItem]) -> MemoryItem:
    """The sum; failed if one is, planned if one still is."""
    known = list(items)
    used = {item.status for item in known if item.planned_bytes or item.measured_bytes}
    return MemoryItem(
        planned_bytes=sum(item.planned_bytes for item in known),
        measured_bytes=sum(item.measured_bytes for item in known),
        status="failed" if "failed" in used else "allocated" if used == {"allocated"} else "planned",
    )
