"""A report as the tables that docs/performance.md shows."""

from collections.abc import Callable, Iterator, Sequence

from bench.results import OURS, Report, Row, Spread
from bench.vocabulary import BenchError

GIGA = 1e9
BEGIN, END = "<!-- numbers of a run -->", "<!-- end of numbers -->"
UNITS = {"bytes": (1e6, "MB"), "s": (1e-3, "ms"), "1": (0.01, "%")}  # divisor, and the name a reader knows


def markdown(report: Report) -> str:
    """Limits, then a table for each shape and metric, then what was left out."""
    return "\n".join([*_head(report), *_tables(report), *_omissions(report)]) + "\n"


def with_numbers(page: str, tables: str) -> str:
    """The page with other tables between its two marks.  BenchError when it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"the page has no lines {BEGIN} and {END} to put numbers between")
    return f"{before}{BEGIN}\n{tables}{END}{after}"


def _head(report: Report) -> Iterator[str]:
    machine, limits = report.machine, report.limits
    rounds = f"{report.n_rounds} rounds" if report.n_rounds > 1 else "1 round"
    yield f"{machine.description}, {machine.n_threads} threads, {machine.date}."
    yield f"Medians of {rounds}, extremes in brackets; *times* a peer: above 1 ours is better."
    yield ""
    yield "| limit | measured |"
    yield "|---|---|"
    yield f"| streamed read | {_value(limits.read_bytes_per_s, GIGA)} GB/s |"
    yield f"| int8 multiply-accumulate | {_value(limits.int8_ops_per_s, GIGA)} GOP/s |"
    yield f"| f32 multiply-add | {_value(limits.f32_ops_per_s, GIGA)} GFLOP/s |"


def _tables(report: Report) -> Iterator[str]:
    for shape in dict.fromkeys(row.shape for row in report.rows):
        rows = [row for row in report.rows if row.shape == shape]
        limited = [row for row in rows if row.of_limit]
        yield from _table(f"{shape}: tokens a second", limited, _limited)
        if limited:  # roofline.py draws it beside
            yield from (
                "",
                f"![{shape}: what was attained, under what the machine can do](roofline-{shape}.png)",
            )
        yield from _table(
            f"{shape}: start, memory, engine", [row for row in rows if not row.of_limit], _plain
        )


def _limited(row: Row) -> dict[str, str]:
    """What a row that has a limit shows of ours."""
    return {
        "case": row.case,
        "type": row.file_type,
        OURS: _cell(row.contenders.get(OURS), 1),
        "GOP/s": _cell(row.attained.get(OURS), GIGA),
        "of the limit": f"{row.of_limit[OURS].median:.0%}" if OURS in row.of_limit else "",
    }


def _plain(row: Row) -> dict[str, str]:
    """What a row without a limit shows of ours."""
    scale, unit = _scale(row)
    ours = _cell(row.contenders.get(OURS), scale)
    return {"case": row.case, "type": row.file_type, "metric": f"{row.metric} [{unit}]", OURS: ours}


def _table(title: str, rows: Sequence[Row], shown: Callable[[Row], dict[str, str]]) -> Iterator[str]:
    if not rows:
        return
    peers = list(dict.fromkeys(name for row in rows for name in row.contenders if name != OURS))
    yield from ("", f"**{title}**", "")
    for i, row in enumerate(rows):
        cells = shown(row)
        for name in peers:
            cells[name] = _cell(row.contenders.get(name), _scale(row)[0])
            cells[f"times {name}"] = _cell(row.ratios.get(name), 1)
        if i == 0:
            yield f"| {' | '.join(cells)} |"
            yield f"|{'---|' * len(cells)}"
        yield f"| {' | '.join(cells.values())} |"


def _scale(row: Row) -> tuple[float, str]:
    return UNITS.get(row.unit, (1.0, row.unit))


def _omissions(report: Report) -> Iterator[str]:
    if report.omissions:
        yield ""
        yield "Left out:"
        yield ""
    for item in report.omissions:
        yield f"- {item.shape} {item.file_type} {item.case}, {item.contender}: {item.why}"


def _cell(values: Spread | None, scale: float) -> str:
    return "" if values is None else _value(values, scale)


def _value(values: Spread, scale: float) -> str:
    median, low, high = (_digits(x / scale) for x in (values.median, values.low, values.high))
    return median if values.n == 1 else f"{median} ({low}..{high})"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
