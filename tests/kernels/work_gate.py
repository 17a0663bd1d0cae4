"""Instructions per token of the native kernels, against a stored budget: a regression gate without a clock.

    python -m tests.kernels.work_gate [--record] PROGRAM

PROGRAM is `kernel_work` (tests/kernels/native/work.cpp), which does the same work in every run; callgrind
counts the instructions of each of its cases on the AVX2 table.  The counts repeat exactly on one build, but
another compiler gives other code: the budget is kept per compiler and major version, and one that has no
budget is reported, not judged.  `--record` writes this compiler's counts, and leaves those of others alone.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernels.cpu.backend import available_isas

BUDGET = Path(__file__).with_name("work_budget.json")
ISA = "avx2"
TOLERANCE = 0.05  # what a patch release of a compiler may change without anybody's doing
VALGRIND_TIMEOUT_S = 600.0

Counts = Mapping[str, float]  # "op type phase" -> instructions per token


@dataclass(frozen=True)
class Verdict:
    """What a comparison found; lines are to be read by people."""

    is_within: bool
    lines: tuple[str, ...]


def compiler_of(program: Path) -> str:
    """Compiler and major version that made the program, such as "gcc 12"."""
    return subprocess.run([program, "compiler"], check=True, capture_output=True, text=True).stdout.strip()


def unjudged(program: Path) -> str | None:
    """Why there is no budget to judge by here, or None."""
    if ISA not in available_isas():
        return f"this machine has no {ISA}"
    compiler, known = compiler_of(program), sorted(read_budgets())
    if compiler not in known:
        return f"no budget for {compiler}, only for {', '.join(known) or 'no compiler'}; record one"
    return None


def measure(program: Path) -> Counts:
    """Run every case under callgrind.  OSError without valgrind, RuntimeError when the run goes wrong."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            "valgrind", "--tool=callgrind", "--toggle-collect=work_case", "--dump-after=work_case",
            f"--callgrind-out-file={out}", str(program), ISA,
        ]  # fmt: skip
        ran = subprocess.run(command, capture_output=True, text=True, timeout=VALGRIND_TIMEOUT_S)
        if ran.returncode:
            raise RuntimeError(f"{' '.join(command)} exits with {ran.returncode}:\n{ran.stderr}")
        counts: dict[str, float] = {}
        for part, line in enumerate(ran.stdout.splitlines(), 1):
            op, dtype, phase, n_tokens = line.split()
            counts[f"{op} {dtype} {phase}"] = round(_total(out.with_name(f"out.{part}")) / int(n_tokens), 1)
        return counts


def _total(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no totals in callgrind's {dump.name}")
    return int(found[1])


def compare(counts: Counts, budget: Counts, tolerance: float = TOLERANCE) -> Verdict:
    """Every case must be in both and cost at most its budget and the tolerance."""
    lines: list[str] = []
    is_within = True
    for case in sorted({*counts, *budget}):
        if case not in budget or case not in counts:
            missing = "budget" if case not in budget else "work"
            lines.append(f"FAIL {case}: there is no {missing} for it; record the budget anew")
            is_within = False
            continue
        change = counts[case] / budget[case] - 1
        too_much = change > tolerance
        is_within = is_within and not too_much
        verdict = "FAIL" if too_much else "less" if change < -tolerance else "ok"
        lines.append(
            f"{verdict:4} {case:26} {counts[case]:14,.1f} instructions a token, {change:+7.1%} of budget"
        )
    return Verdict(is_within, tuple(lines))


def read_budgets() -> dict[str, Counts]:
    """Budgets by compiler."""
    return json.loads(BUDGET.read_text()) if BUDGET.exists() else {}


def record(compiler: str, counts: Counts) -> None:
    """Make counts the compiler's budget."""
    budgets = {**read_budgets(), compiler: counts}
    BUDGET.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")


def main(args: list[str]) -> int:
    """Exit status 0 within budget, recorded or not judged, 1 over budget."""
    program = Path(args[-1])
    if "--record" in args:
        counts = measure(program)
        record(compiler_of(program), counts)
        print(f"recorded {len(counts)} cases for {compiler_of(program)}")
        return 0
    if reason := unjudged(program):
        print(f"not judged: {reason}")
        return 0
    verdict = compare(measure(program), read_budgets()[compiler_of(program)])
    print("\n".join(verdict.lines))
    return 0 if verdict.is_within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
