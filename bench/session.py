"""A run: every case with every file, the contenders alternately, the limits beside them in each round."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.case import SHORT_DEPTH, Case, Contender, Kind, Metric, Skipped
from bench.files import ModelFile, model_file
from bench.limits import LimitProbe, Limits, between
from bench.results import Omission, Row, reduce_case
from bench.shapes import Shape
from bench.vocabulary import Vocabulary, choose

DEEP_ROUNDS = 2  # behind a long context a peer first computes it, for minutes
DEEP = 1024

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    n_rounds: int
    n_prompt: int
    n_decode: int
    depths: tuple[int, ...]
    n_seqs: tuple[int, ...]
    overhead_n_seqs: tuple[int, ...]
    n_overhead: int

    def cases(self, kinds: Sequence[Kind], in_detail: bool) -> Iterator[Case]:
        """Everything that the kinds stand for, in order; without detail only what differs between types."""
        if Kind.PROMPT in kinds:
            yield Case(Kind.PROMPT, self.n_prompt)
        if Kind.DECODE in kinds:
            depths = self.depths if in_detail else self.depths[:1]
            yield from (Case(Kind.DECODE, self.n_decode, depth) for depth in depths)
        if not in_detail:
            return
        if Kind.BATCH in kinds:
            yield from (Case(Kind.BATCH, self.n_decode, SHORT_DEPTH, n) for n in self.n_seqs)
        if Kind.START in kinds:
            yield Case(Kind.START, 1)
        if Kind.OVERHEAD in kinds:
            yield from (Case(Kind.OVERHEAD, self.n_overhead, n_seq=n) for n in self.overhead_n_seqs)


FULL = Sizes(3, 512, 32, (0, 4096, 16384), (4, 8, 16, 32), (1, 16), 64)
QUICK = Sizes(1, 32, 4, (0, 64), (4,), (1, 4), 8)


class Session:
    """Collects rows as it goes, so that what was measured before an interruption is kept."""

    def __init__(self, contenders: Sequence[Contender], probe: LimitProbe, say: Say) -> None:
        self._contenders = contenders
        self._probe = probe
        self._say = say
        self.rows: list[Row] = []
        self.omissions: list[Omission] = []
        self.limits: list[Limits] = [probe.measure()]

    def run(
        self,
        folder: Path,
        shapes: Sequence[Shape],
        file_types: Sequence[str],
        vocabularies: Sequence[Vocabulary],
        sizes: Sizes,
        kinds: Sequence[Kind],
        detail: Sequence[str],
    ) -> None:
        """Generate what is missing, then measure."""
        for shape in shapes:
            for file_type in file_types:
                file = model_file(folder, shape, file_type, choose(vocabularies, shape.n_vocab))
                for case in sizes.cases(kinds, file_type in detail):
                    is_deep = case.depth >= DEEP
                    self._measure(case, file, min(sizes.n_rounds, DEEP_ROUNDS) if is_deep else sizes.n_rounds)

    def _measure(self, case: Case, file: ModelFile, n_rounds: int) -> None:
        samples: dict[Metric, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        limits: dict[str, dict[int, Limits]] = defaultdict(dict)
        left = list(self._contenders)
        for i in range(n_rounds):
            warm_page_cache(file.path)
            before = self._probe.measure()
            for contender in list(left if i % 2 == 0 else reversed(left)):  # nobody always comes first
                try:
                    found = contender.measure(case, file)
                except Skipped as skipped:
                    left.remove(contender)
                    self._omit(contender.name, file, case, str(skipped))
                    continue
                after = self._probe.measure()
                limits[contender.name][i] = between(before, after)
                before = after
                for metric, value in found.items():
                    samples[metric][contender.name][i] = value
        self.limits += [found for rounds in limits.values() for found in rounds.values()]
        for metric, by_contender in samples.items():
            row = reduce_case(case, file, metric, by_contender, limits)
            self.rows.append(row)
            self._say(line_of(row))

    def _omit(self, contender: str, file: ModelFile, case: Case, why: str) -> None:
        if case.kind is Kind.OVERHEAD:
            return  # of peers nothing is asked
        self.omissions.append(Omission(contender, file.shape.name, file.file_type, case.title, why))
        self._say(f"{file.shape.name} {file.file_type} {case.title}: {contender} skipped: {why}")


def line_of(row: Row) -> str:
    """A row as it appears while the run goes on."""
    values = ", ".join(
        f"{name} {s.median:.4g} ({s.low:.4g}..{s.high:.4g})" for name, s in row.contenders.items()
    )
    ratios = "".join(f", {s.median:.2f} x {name}" for name, s in row.ratios.items())
    share = f", {row.of_limit['ours'].median:.0%} of the limit" if "ours" in row.of_limit else ""
    return f"{row.shape} {row.file_type} {row.case}: {row.metric} [{row.unit}] {values}{ratios}{share}"


def warm_page_cache(path: Path) -> None:
    """Every contender finds the file in memory."""
    with path.open("rb", buffering=0) as file:
        block = bytearray(8 << 20)
        while file.readinto(block):
            pass
