"""The regression gate of tests/kernels/work_gate.py: instructions per token against the stored budget."""

import os
import shutil
from pathlib import Path

import pytest

from tests.kernels.work_gate import TOLERANCE, compare, compiler_of, measure, read_budgets, unjudged

BUDGET = {"matmul Q4_0 decode": 1000.0, "rope F32 decode": 10.0}


def test_a_case_over_budget_by_more_than_the_tolerance_fails() -> None:
    assert compare({**BUDGET, "rope F32 decode": 9.99 * (1 + TOLERANCE)}, BUDGET).is_within
    assert not compare({**BUDGET, "rope F32 decode": 10.01 * (1 + TOLERANCE)}, BUDGET).is_within


def test_a_case_far_under_budget_passes_and_is_pointed_out() -> None:
    verdict = compare({**BUDGET, "rope F32 decode": 5.0}, BUDGET)
    assert verdict.is_within
    assert any(line.startswith("less rope F32 decode") for line in verdict.lines)


def test_a_case_that_one_side_lacks_fails() -> None:
    assert not compare(BUDGET, {"rope F32 decode": 10.0}).is_within
    assert not compare({"rope F32 decode": 10.0}, BUDGET).is_within


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_the_kernels_stay_within_their_budget_of_instructions() -> None:
    program = os.environ.get("KERNEL_WORK")
    if program is None:
        pytest.skip("KERNEL_WORK does not name kernel_work; `make kernels` builds it")
    if reason := unjudged(Path(program)):
        pytest.skip(reason)
    verdict = compare(measure(Path(program)), read_budgets()[compiler_of(Path(program))])
    assert verdict.is_within, "\n".join(line for line in verdict.lines if line.startswith("FAIL"))
