"""Every foreseen error says what, where and how to mend it, and survives a trip between processes."""

import copy
import inspect
import sys

import pytest

from actors.errors import CapacityError, PeerGone, QueueFull, RuntimeFault

errors = sys.modules[RuntimeFault.__module__]
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RuntimeFault)]


def test_an_error_reads_as_what_happened_and_how_to_mend_it() -> None:
    error = CapacityError("needs 9 GiB, has 6 GiB", where="scheduler.placement", mend="ask for n_ctx 8192")
    assert str(error) == "needs 9 GiB, has 6 GiB; ask for n_ctx 8192"
    assert (error.message, error.where) == ("needs 9 GiB, has 6 GiB", "scheduler.placement")


def test_an_error_without_a_mend_is_its_message() -> None:
    assert str(PeerGone("runner 7 went away", where="link")) == "runner 7 went away"


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_keeps_kind_message_place_and_mend(kind: type[RuntimeFault]) -> None:
    again = copy.copy(kind("what", where="here", mend="so"))
    assert (type(again), again.message, again.where, again.mend) == (kind, "what", "here", "so")


def test_codes_tell_the_kinds_apart() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawing_shows_each_kind_with_its_status(kind: type[RuntimeFault]) -> None:
    lines = [line.split() for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line]
    assert kind is RuntimeFault or (lines and str(kind.http_status) in lines[0])


def test_a_full_queue_is_a_kind_of_missing_capacity() -> None:
    assert issubclass(QueueFull, CapacityError)
