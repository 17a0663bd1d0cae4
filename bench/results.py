"""What a run found, as it is written to JSON: samples reduced to medians, spreads and ratios."""

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from bench.case import Case, Metric
from bench.files import ModelFile
from bench.limits import Limits

OURS = "ours"


class Spread(msgspec.Struct, frozen=True):
    """Several samples of one thing."""

    median: float
    low: float
    high: float
    n: int


class Row(msgspec.Struct, frozen=True):
    """One metric of one case with one file.  Contenders are by name; ours is "ours"."""

    shape: str
    file_type: str
    case: str
    metric: str
    unit: str
    contenders: dict[str, Spread]
    ratios: dict[
        str, Spread
    ]  # by peer: how many times better ours was in the same round; > 1: ours is better
    of_limit: dict[
        str, Spread
    ]  # by contender: share of what the machine could do in the same round; else empty
    attained: dict[str, Spread]  # by contender: operations a second that the result comes to; else empty
    intensity: float  # operations for each byte that must be read; 0 where it has no meaning


class LimitSpreads(msgspec.Struct, frozen=True):
    """The machine's own limits over all rounds."""

    read_bytes_per_s: Spread
    int8_ops_per_s: Spread
    f32_ops_per_s: Spread


class Omission(msgspec.Struct, frozen=True):
    """What could not be measured, and why."""

    contender: str
    shape: str
    file_type: str
    case: str
    why: str


class Machine(msgspec.Struct, frozen=True):
    """In words that name no particular machine."""

    description: str
    n_threads: int
    isa: str
    date: str  # ISO 8601


class Report(msgspec.Struct, frozen=True):
    """A whole run."""

    machine: Machine
    n_rounds: int
    limits: LimitSpreads
    rows: list[Row]
    omissions: list[Omission]


def spread(values: Sequence[float]) -> Spread:
    """Median and extremes of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def limit_spreads(rounds: Sequence[Limits]) -> LimitSpreads:
    """Of at least one round."""
    return LimitSpreads(
        spread([limits.read_bytes_per_s for limits in rounds]),
        spread([limits.int8_ops_per_s for limits in rounds]),
        spread([limits.f32_ops_per_s for limits in rounds]),
    )


def reduce_case(
    case: Case,
    file: ModelFile,
    metric: Metric,
    samples: Mapping[str, Mapping[int, float]],
    limits: Mapping[str, Mapping[int, Limits]],
) -> Row:
    """samples and the limits beside them: by contender and round."""
    work = case.work(file) if metric.unit == "tok/s" else None
    attained: dict[str, Spread] = {}
    of_limit: dict[str, Spread] = {}
    if work is not None:
        is_int8 = not file.file_type.endswith("F16")
        ops_each = work.n_ops / work.n_tokens
        for name, values in samples.items():
            attained[name] = spread([value * ops_each for value in values.values()])
            of_limit[name] = spread(
                [
                    value * ops_each / limits[name][i].attainable_ops_per_s(work.intensity, is_int8)
                    for i, value in values.items()
                ]
            )
    return Row(
        shape=file.shape.name,
        file_type=file.file_type,
        case=case.title,
        metric=metric.name,
        unit=metric.unit,
        contenders={name: spread(list(values.values())) for name, values in samples.items()},
        ratios=_ratios(metric, samples),
        of_limit=of_limit,
        attained=attained,
        intensity=work.intensity if work else 0.0,
    )


def _ratios(metric: Metric, samples: Mapping[str, Mapping[int, float]]) -> dict[str, Spread]:
    """Ours against each peer, round by round: what swings from minute to minute swings for both."""
    ours = samples.get(OURS, {})
    found: dict[str, Spread] = {}
    for name, theirs in samples.items():
        both = ours.keys() & theirs.keys()
        if name == OURS or not both:
            continue
        better = [ours[i] / theirs[i] if metric.is_more_better else theirs[i] / ours[i] for i in sorted(both)]
        found[name] = spread(better)
    return found
