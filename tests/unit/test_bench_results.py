"""From samples to medians, spreads, ratios, shares of the limits, and tables."""

import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.case import FIRST_TOKEN_S, TOKENS_PER_S, Case, Kind, Metric
from bench.files import ModelFile
from bench.limits import Limits, between
from bench.markdown import BEGIN, END, markdown, with_numbers
from bench.overhead import Clock
from bench.results import Machine, Omission, Report, Row, limit_spreads, reduce_case, spread
from bench.roofline import draw_rooflines
from bench.session import FULL, Sizes
from bench.shapes import SHAPES
from bench.vocabulary import BenchError

FILE = ModelFile(Path("1B.gguf"), SHAPES["1B"], "Q4_K_M", "synthetic")
FLOAT_FILE = ModelFile(Path("1B.gguf"), SHAPES["1B"], "F16", "synthetic")
PROMPT, DECODE = Case(Kind.PROMPT, 512), Case(Kind.DECODE, 32)
LIMITS = Limits(20e9, 400e9, 200e9)
POSITIVE = st.floats(1e-3, 1e6)


def row_of(case: Case, metric: Metric, file: ModelFile = FILE, **samples: list[float]) -> Row:
    by_round = {name: dict(enumerate(values)) for name, values in samples.items()}
    limits = {name: dict.fromkeys(values, LIMITS) for name, values in by_round.items()}
    return reduce_case(case, file, metric, by_round, limits)


def report_of(*rows: Row, omissions: tuple[Omission, ...] = ()) -> Report:
    machine = Machine("2 processors, avx2", 2, "avx2", "2026-11-23")
    return Report(machine, 3, limit_spreads([LIMITS]), list(rows), list(omissions))


@given(values=st.lists(POSITIVE, min_size=1, max_size=9))
def test_a_spread_is_the_median_between_the_extremes(values: list[float]) -> None:
    found = spread(values)
    assert (found.median, found.n) == (statistics.median(values), len(values))
    assert found.low <= found.median <= found.high


def test_a_ratio_is_taken_within_each_round() -> None:
    # the machine halves its speed in the second round: for both
    row = row_of(PROMPT, TOKENS_PER_S, ours=[100.0, 50.0, 90.0], peer=[50.0, 25.0, 90.0])
    assert row.ratios["peer"] == spread([2.0, 2.0, 1.0])


def test_a_ratio_over_one_means_ours_is_better_also_where_less_is() -> None:
    assert row_of(PROMPT, TOKENS_PER_S, ours=[30.0], peer=[20.0]).ratios["peer"].median == 1.5
    assert row_of(Case(Kind.START, 1), FIRST_TOKEN_S, ours=[2.0], peer=[3.0]).ratios["peer"].median == 1.5


def test_a_peer_without_ours_beside_it_has_no_ratio() -> None:
    assert row_of(PROMPT, TOKENS_PER_S, peer=[20.0]).ratios == {}


def test_a_prompt_is_held_against_the_int8_peak_and_floats_against_theirs() -> None:
    for file, peak in ((FILE, LIMITS.int8_ops_per_s), (FLOAT_FILE, LIMITS.f32_ops_per_s)):
        row = row_of(PROMPT, TOKENS_PER_S, file, ours=[100.0])
        assert row.of_limit["ours"].median == pytest.approx(row.attained["ours"].median / peak)


def test_decoding_is_held_against_the_bytes_it_must_read() -> None:
    work = DECODE.work(FILE)
    assert work is not None
    row = row_of(DECODE, TOKENS_PER_S, ours=[10.0])
    assert row.of_limit["ours"].median == pytest.approx(10.0 * work.n_bytes / LIMITS.read_bytes_per_s)


def test_a_start_has_no_limit() -> None:
    row = row_of(Case(Kind.START, 1), FIRST_TOKEN_S, ours=[2.0])
    assert (row.of_limit, row.attained, row.intensity) == ({}, {}, 0.0)


@given(low=POSITIVE, high=POSITIVE, intensity=POSITIVE)
def test_the_roof_is_the_lower_of_slope_and_peak(low: float, high: float, intensity: float) -> None:
    roof = Limits(low, high, high).attainable_ops_per_s(intensity, is_int8=True)
    assert roof == min(high, low * intensity)


def test_limits_between_two_measurements_are_their_means() -> None:
    assert between(Limits(1.0, 2.0, 3.0), Limits(3.0, 4.0, 5.0)) == Limits(2.0, 3.0, 4.0)


def test_time_outside_the_kernels_is_what_a_step_takes_beyond_its_computing() -> None:
    clock = Clock(1, [(0.0, 0.0), (1.5, 1.0), (3.0, 2.0), (9.0, 3.0)])  # the last was kept waiting
    assert clock.outside_s() == pytest.approx(0.5)
    assert clock.outside_share() == pytest.approx(0.5 / 1.5)


def test_a_report_survives_json() -> None:
    report = report_of(
        row_of(PROMPT, TOKENS_PER_S, ours=[1.0, 2.0], peer=[3.0, 4.0]),
        omissions=(Omission("peer", "1B", "Q4_0", "start", "no llama-server given"),),
    )
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_tables_show_values_ratios_shares_and_what_was_left_out() -> None:
    text = markdown(
        report_of(
            row_of(PROMPT, TOKENS_PER_S, ours=[100.0, 120.0, 110.0], peer=[50.0, 50.0, 50.0]),
            row_of(Case(Kind.START, 1), FIRST_TOKEN_S, ours=[0.25]),
            omissions=(Omission("peer", "1B", "Q4_0", "start", "no llama-server given"),),
        )
    )
    assert "| prompt 512 | Q4_K_M | 110 (100..120) |" in text
    assert "| 50.0 (50.0..50.0) | 2.20 (2.00..2.40) |" in text
    assert "| start | Q4_K_M | first token [ms] | 250 |" in text
    assert "- 1B Q4_0 start, peer: no llama-server given" in text


def test_numbers_are_replaced_between_their_marks() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_numbers(page, "new\n") == page.replace("old", "new")


@pytest.mark.parametrize("page", ["", BEGIN, f"{END} {BEGIN}"])
def test_a_page_without_marks_is_refused(page: str) -> None:
    with pytest.raises(BenchError, match="no lines"):
        with_numbers(page, "new")


def test_the_picture_is_drawn_for_each_shape_with_points(tmp_path: Path) -> None:
    rows = [
        row_of(PROMPT, TOKENS_PER_S, ours=[100.0], peer=[50.0]),
        row_of(DECODE, TOKENS_PER_S, ours=[10.0]),
    ]
    paths = draw_rooflines(report_of(*rows, row_of(Case(Kind.START, 1), FIRST_TOKEN_S, ours=[1.0])), tmp_path)
    assert [path.name for path in paths] == ["roofline-1B.png"]
    with Image.open(paths[0]) as image:
        assert (image.format, image.getcolors(1 << 20) is not None) == ("PNG", True)


def test_no_picture_is_drawn_without_points(tmp_path: Path) -> None:
    assert draw_rooflines(report_of(), tmp_path) == []


@pytest.mark.parametrize("in_detail", [True, False])
def test_cases_of_a_run_have_titles_of_their_own(in_detail: bool) -> None:
    titles = [case.title for case in FULL.cases(list(Kind), in_detail)]
    assert len(titles) == len(set(titles))


def test_only_what_was_asked_for_is_measured() -> None:
    sizes = Sizes(1, 32, 4, (0, 64), (4,), (1,), 8)
    assert [case.title for case in sizes.cases([Kind.DECODE], in_detail=True)] == ["decode", "decode at 64"]
    assert [case.title for case in sizes.cases([Kind.DECODE], in_detail=False)] == ["decode"]
