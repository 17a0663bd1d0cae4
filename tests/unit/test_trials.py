"""Which request a runner died of."""

from typing import cast

import pytest
import trio
import trio.testing

from actors.gateway.trials import Trials
from actors.link import Link


class Connection:
    """Stands for a link: only which one it is matters."""


def new_link() -> Link:
    return cast("Link", Connection())


async def test_who_shared_a_runner_that_died_may_be_the_cause() -> None:
    trials, link = Trials(), new_link()
    async with trials.entry("m", is_suspect=False) as one, trials.entry("m", is_suspect=False) as other:
        one.begin(link)
        other.begin(link)
        other.passed()
        assert one.died()
        assert other.died()


async def test_a_death_during_a_trial_is_of_the_one_on_trial() -> None:
    trials, link = Trials(), new_link()
    async with trials.entry("m", is_suspect=True) as good:
        good.begin(link)
        good.passed()
        async with trials.entry("m", is_suspect=True) as bad:
            bad.begin(link)
            assert bad.died()
            assert not good.died()  # in whatever order they hear of it
        later = new_link()
        good.begin(later)
        assert good.died()


async def test_the_next_one_waits_until_the_answer_of_the_one_before_goes_on() -> None:
    trials, link, begun = Trials(), new_link(), list[str]()

    async def stand(name: str, *, is_suspect: bool, hold: trio.Event) -> None:
        async with trials.entry("m", is_suspect=is_suspect) as trial:
            begun.append(name)
            trial.begin(link)
            await hold.wait()
            trial.passed()
            await trio.sleep_forever()

    holds = {name: trio.Event() for name in ("first", "second", "newcomer")}
    async with trio.open_nursery() as nursery:
        for name, hold in holds.items():
            nursery.start_soon(lambda n, h: stand(n, is_suspect=n != "newcomer", hold=h), name, hold)
            await trio.testing.wait_all_tasks_blocked()
        assert begun == ["first"]
        holds["first"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["first", "second"]
        holds["second"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["first", "second", "newcomer"]
        holds["newcomer"].set()
        await trio.testing.wait_all_tasks_blocked()
        async with trials.entry("m", is_suspect=False) as late:  # nobody is on trial any more
            late.begin(link)
        nursery.cancel_scope.cancel()


async def test_newcomers_do_not_wait_for_each_other() -> None:
    trials, n_in = Trials(), 0

    async def come() -> None:
        nonlocal n_in
        async with trials.entry("m", is_suspect=False):
            n_in += 1
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with trials.entry("m", is_suspect=True):
            for _ in range(5):
                nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked()
            assert n_in == 0
        await trio.testing.wait_all_tasks_blocked()
        assert n_in == 5
        nursery.cancel_scope.cancel()


async def test_other_models_are_not_held_up() -> None:
    trials = Trials()
    async with trials.entry("m", is_suspect=True), trials.entry("other", is_suspect=True):
        pass


@pytest.mark.parametrize("is_on", [True, False], ids=["on trial", "waiting"])
async def test_who_leaves_lets_the_next_one_in_and_is_not_blamed(is_on: bool) -> None:
    trials, link = Trials(), new_link()

    async def wait() -> None:
        async with trials.entry("m", is_suspect=True) as trial:
            trial.begin(link)
            await trio.sleep_forever()

    async with trials.entry("m", is_suspect=False) as beside:
        beside.begin(link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            if not is_on:
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            async with trials.entry("m", is_suspect=True):
                pass
        assert beside.died()
