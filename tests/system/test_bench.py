"""The whole bench on a tiny model, without peers: all is measured and written; no speed is asserted."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench.results import Report, Spread
from tests.processes import ROOT

CEILING_S = 300
DETAIL_METRICS = {
    "throughput",
    "first token",
    "anonymous memory",
    "anonymous beyond cache and buffers",
    "second runner, proportional",
    "second runner, resident",
    "outside kernels, per step",
    "outside kernels, share",
    "served throughput",
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != "BENCH_PEERS"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=CEILING_S,
        check=False,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick run left."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench(
        "--quick", "--threads", "2", "--models", str(folder / "models"), "--out", str(folder / "out")
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def report(out: Path) -> Report:
    return msgspec.json.decode((out / "bench.json").read_bytes(), type=Report)


def spreads(report: Report) -> Iterator[Spread]:
    limits = report.limits
    yield from (limits.read_bytes_per_s, limits.int8_ops_per_s, limits.f32_ops_per_s)
    for row in report.rows:
        yield from (*row.contenders.values(), *row.of_limit.values(), *row.attained.values())


def test_every_type_and_every_kind_of_measurement_is_there(report: Report) -> None:
    short = {"prompt 32", "decode"}
    for file_type in ("Q4_0", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16"):
        assert {row.case for row in report.rows if row.file_type == file_type} == short
    detail = [row for row in report.rows if row.file_type == "Q4_K_M"]
    assert {row.metric for row in detail} == DETAIL_METRICS
    assert {row.case for row in detail} == short | {
        "decode at 64",
        "decode x4",
        "start",
        "engine x1",
        "engine x4",
    }
    assert report.omissions == []


def test_every_number_is_positive(report: Report) -> None:
    assert all(0 < s.low <= s.median <= s.high for s in spreads(report))


def test_the_json_has_the_fields_that_the_documentation_names(out: Path) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    written = json.loads((out / "bench.json").read_text())
    for name in {*written, *written["rows"][0], *written["machine"], *written["limits"]}:
        assert f"`{name}`" in text


def test_picture_and_tables_are_written(out: Path) -> None:
    assert (out / "roofline-tiny.png").read_bytes().startswith(b"\x89PNG")
    shown = bench("--markdown", "--out", str(out))
    assert shown.stdout == (out / "bench.md").read_text()


def test_the_numbers_of_a_run_can_be_put_into_the_page(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    done = bench("--into", str(page), "--out", str(out))
    assert (done.returncode, (out / "bench.md").read_text() in page.read_text()) == (0, True)
    assert (tmp_path / "roofline-tiny.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--types", "Q3_X"), "Q3_X is none of"),
        (("--rounds", "0"), "no number from 1 on"),
        (("--types", "Q4_0", "--detail", "F16"), "--types leaves out"),
        (("--peer", "nowhere"), "write NAME=PATH"),
        (("--markdown", "--out", "/nowhere"), "No such file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = bench("--quick", "--models", str(tmp_path), *arguments)
    assert done.returncode != 0
    assert said in done.stderr
