"""`python -m bench`: measure ours against the machine's limits, and against peers where there are any."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from actors.errors import RuntimeFault
from bench.limits import LimitProbe
from bench.machine import describe
from bench.markdown import markdown, with_numbers
from bench.options import FILE_NAME, Options, parse
from bench.ours import Ours
from bench.peers import find_peer
from bench.results import Report, limit_spreads
from bench.roofline import draw_rooflines
from bench.session import Session
from bench.vocabulary import BenchError, check_used, read_vocabulary


def main(arguments: Sequence[str]) -> int:
    """Process entry; the exit code."""
    options = parse(arguments)
    try:
        if options.into is not None:
            put_into(options.into, read_report(options.out))
        elif options.markdown:
            sys.stdout.write(markdown(read_report(options.out)))
        else:
            measure(options)
    except (BenchError, RuntimeFault, OSError, argparse.ArgumentError) as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    return 0


def read_report(folder: Path) -> Report:
    """What a run left there.  BenchError when it was another version's."""
    path = folder / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.DecodeError as exc:
        raise BenchError(f"{path} is no report of this version ({exc}); measure again") from exc


def put_into(page: Path, report: Report) -> None:
    """Replace the numbers of a page, and draw the pictures beside it."""
    page.write_text(with_numbers(page.read_text(), markdown(report)))
    for path in draw_rooflines(report, page.parent):
        print(path)


def measure(options: Options) -> None:
    """Run, and write bench.json, bench.md and roofline-*.png to --out; also when the run is broken off."""
    vocabularies = [read_vocabulary(path) for path in options.vocab]
    check_used(vocabularies, options.shapes)
    contenders = [
        Ours(options.threads, options.isa),
        *(find_peer(text, options.threads) for text in options.peer),
    ]
    probe = LimitProbe(options.threads, options.isa, options.buffer_bytes, options.pass_s)
    session = Session(contenders, probe, lambda line: print(line, flush=True))
    try:
        session.run(
            options.models,
            options.shapes,
            options.types,
            vocabularies,
            options.sizes,
            options.only,
            options.detail,
        )
    finally:
        options.out.mkdir(parents=True, exist_ok=True)
        report = Report(
            machine=describe(options.threads, options.isa),
            n_rounds=options.sizes.n_rounds,
            limits=limit_spreads(session.limits),
            rows=session.rows,
            omissions=session.omissions,
        )
        (options.out / FILE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (options.out / "bench.md").write_text(markdown(report))
    for path in (options.out / FILE_NAME, *draw_rooflines(report, options.out)):
        print(path)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
