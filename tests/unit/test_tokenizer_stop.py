"""Stop strings are found over any cut, cut off whole, and never leak."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import RequestError
from actors.runner.tokenizer import StopMatcher, cut_at_stop

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    sent = "".join(map(matcher.push, pieces)) + matcher.flush()
    return sent, matcher.found


def whole(stops: list[str], text: str) -> tuple[str, str | None]:
    """Of the whole text at once: it ends where any stop begins first, named by the shortest there."""
    for start in range(len(text)):
        here = [stop for stop in stops if text.startswith(stop, start)]
        if here:
            return text[:start], min(here, key=len)
    return text, None


@given(STOPS, st.lists(st.text("abc", max_size=4), max_size=12))
def test_the_answer_does_not_depend_on_the_cuts(stops: list[str], pieces: list[str]) -> None:
    assert run(stops, pieces) == whole(stops, "".join(pieces))


@given(STOPS, st.lists(st.text("abc", max_size=4), max_size=12))
def test_nothing_is_sent_that_may_become_part_of_a_stop(stops: list[str], pieces: list[str]) -> None:
    matcher, sent, fed = StopMatcher(stops), "", ""
    for piece in pieces:
        fed += piece
        sent += matcher.push(piece)
        for stop in stops:
            rest = next((stop[n:] for n in range(len(stop) - 1, 0, -1) if fed.endswith(stop[:n])), None)
            if rest is not None and matcher.found is None:
                assert whole(stops, fed + rest)[0].startswith(sent)


def test_text_that_cannot_become_a_stop_is_sent_at_once() -> None:
    matcher = StopMatcher(["</end>"])
    assert [matcher.push(piece) for piece in ("hello ", "<", "b>")] == ["hello ", "", "<b>"]


def test_the_earliest_stop_wins_and_not_the_first_listed() -> None:
    assert run(["late", "early"], ["so early and so late"]) == ("so ", "early")


def test_of_overlapping_stops_the_one_that_begins_first_wins_though_it_is_complete_last() -> None:
    assert run(["bc d", "c"], ["ab", "c", " ", "d"]) == ("a", "bc d")


def test_a_complete_stop_wins_once_the_one_that_began_before_it_cannot_come() -> None:
    assert run(["bc d", "c"], ["ab", "c", " ", "x"]) == ("ab", "c")


def test_a_complete_stop_does_not_leak_when_the_text_ends_before_the_one_that_began_earlier() -> None:
    assert run(["bc d", "c"], ["ab", "c", " "]) == ("ab", "c")


def test_of_stops_that_begin_at_once_the_shorter_wins() -> None:
    assert run(["abc", "ab"], ["xabc"]) == run(["abc", "ab"], ["xab", "c"]) == ("x", "ab")


def test_a_stop_completed_by_the_last_allowed_token_does_not_leak() -> None:
    assert run(["STOP"], ["go on", " ST", "OP"]) == ("go on ", "STOP")


def test_the_beginning_of_a_stop_is_sent_when_the_text_ends_there() -> None:
    assert run(["STOP"], ["go on", " ST"]) == ("go on ST", None)


def test_nothing_comes_after_a_stop() -> None:
    matcher = StopMatcher(["!"])
    assert [matcher.push(piece) for piece in ("hi!", " there", "!")] == ["hi", "", ""]
    assert (matcher.flush(), matcher.held, matcher.found) == ("", "", "!")


def test_an_empty_stop_string_is_refused_and_named() -> None:
    with pytest.raises(RequestError, match="stop string 1 of 2 is empty"):
        StopMatcher(["end", ""])


@pytest.mark.parametrize(
    ("pieces", "stop", "kept", "is_inside"),
    [
        (["hello", "world"], "world", ["hello"], False),
        (["hello", "wor"], "or", ["hello", "w"], True),
        (["Hello", " there", "!"], "!", ["Hello", " there"], False),
        (["Hello", " the", "re!"], "there!", ["Hello", " "], True),
        (["hello", " wor"], "llo w", ["he"], True),
        (["hello"], "x", ["hello"], False),
        (["", "a", "", "b"], "b", ["", "a", ""], False),
    ],
)
def test_pieces_are_cut_at_the_stop(pieces: list[str], stop: str, kept: list[str], is_inside: bool) -> None:
    assert cut_at_stop(pieces, stop) == (kept, is_inside)
