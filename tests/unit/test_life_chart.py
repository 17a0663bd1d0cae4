"""The chart in docs/model-life.md and the table of moves are one."""

import re
from pathlib import Path

from actors.scheduler.life import MOVES, Life

PAGE = Path(__file__).parents[2] / "docs" / "model-life.md"
ARROW = re.compile(r"^\s+(?P<start>[A-Z]+) --> (?P<to>[A-Z]+): (?P<cause>.+)$")


def chart() -> list[tuple[Life, Life]]:
    """The arrows of the page's chart."""
    (drawing,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", PAGE.read_text(), re.DOTALL)
    arrows = [ARROW.match(line) for line in drawing.splitlines()]
    assert None not in arrows, drawing
    return [(Life[arrow["start"]], Life[arrow["to"]]) for arrow in arrows if arrow is not None]


def test_the_chart_has_each_move_of_the_table_once_and_no_other() -> None:
    moves = [(start, to) for start, ends in MOVES.items() for to in ends]
    assert sorted(chart(), key=str) == sorted(moves, key=str)


def test_the_page_describes_each_state() -> None:
    described = re.findall(r"^\| ([A-Z]+) \|", PAGE.read_text(), re.MULTILINE)
    assert described == [life.name for life in Life]
