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
    """Read character by character: the first character that completes a stop ends it."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], max(done, key=len)
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


def test_of_stops_complete_at_once_the_longer_wins() -> None:
    assert run(["c", "abc"], ["xabc"]) == ("x", "abc")


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
