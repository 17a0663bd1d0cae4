"""A report as the tables that docs/performance.md shows."""

from collections.abc import Iterator, Sequence

from bench.results import OURS, Report, Row, Spread
from bench.vocabulary import BenchError

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
    yield f"{machine.description}, {machine.n_threads} threads; {machine.date}; medians of "
    yield f"{report.n_rounds} rounds, extremes in brackets."
    yield ""
    yield "| limit | measured |"
    yield "|---|---|"
    yield f"| streamed read | {_value(limits.read_bytes_per_s, 1e9)} GB/s |"
    yield f"| int8 multiply-accumulate | {_value(limits.int8_ops_per_s, 1e9)} GOP/s |"
    yield f"| f32 multiply-add | {_value(limits.f32_ops_per_s, 1e9)} GFLOP/s |"


def _tables(report: Report) -> Iterator[str]:
    seen: list[tuple[str, str]] = []
    for row in report.rows:
        if (row.shape, row.metric) not in seen:
            seen.append((row.shape, row.metric))
    for shape, metric in seen:
        rows = [row for row in report.rows if (row.shape, row.metric) == (shape, metric)]
        yield from _table(shape, metric, rows)


def _table(shape: str, metric: str, rows: Sequence[Row]) -> Iterator[str]:
    peers = list(dict.fromkeys(name for row in rows for name in row.contenders if name != OURS))
    has_limit = any(row.of_limit for row in rows)
    scale, unit = UNITS.get(rows[0].unit, (1.0, rows[0].unit))
    columns = ["case", "type", OURS, *(["GOP/s", "of the limit"] if has_limit else [])]
    for name in peers:
        columns += [name, f"ours by {name}"]
    yield ""
    yield f"**{shape}: {metric}**, {unit}"
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        cells = [row.case, row.file_type, _cell(row.contenders.get(OURS), scale)]
        if has_limit:
            cells += [_cell(row.attained.get(OURS), 1e9), _percent(row.of_limit.get(OURS))]
        for name in peers:
            cells += [_cell(row.contenders.get(name), scale), _cell(row.ratios.get(name), 1)]
        yield f"| {' | '.join(cells)} |"


def _omissions(report: Report) -> Iterator[str]:
    if report.omissions:
        yield ""
        yield "Left out:"
        yield ""
    for item in report.omissions:
        yield f"- {item.shape} {item.file_type} {item.case}, {item.contender}: {item.why}"


def _cell(values: Spread | None, scale: float) -> str:
    return "" if values is None else _value(values, scale)


def _percent(values: Spread | None) -> str:
    return "" if values is None else f"{values.median:.0%}"


def _value(values: Spread, scale: float) -> str:
    median, low, high = (_digits(x / scale) for x in (values.median, values.low, values.high))
    return median if values.n == 1 else f"{median} ({low}..{high})"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
