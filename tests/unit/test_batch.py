"""Batch composition: bounded, fair, decode first."""

import hypothesis.strategies as st
from hypothesis import given

from actors.runner.batch import Share, Waiting, compose
from actors.runner.groups import groups_of


def test_decoding_sequences_come_before_prompts() -> None:
    shares, _ = compose([Waiting(1, 100), Waiting(2, 1), Waiting(3, 1)], n_batch=10, start=0)
    assert shares == [Share(2, 1, is_last=True), Share(3, 1, is_last=True), Share(1, 8, is_last=False)]


def test_a_prompt_that_fits_asks_for_its_logits() -> None:
    assert compose([Waiting(1, 5)], n_batch=8, start=0)[0] == [Share(1, 5, is_last=True)]


def test_prompts_take_turns_when_one_fills_a_batch() -> None:
    waiting = [Waiting(1, 100), Waiting(2, 100), Waiting(3, 100)]
    served: list[int] = []
    start = 0
    for _ in range(6):
        shares, start = compose(waiting, n_batch=10, start=start)
        served += [share.seq_id for share in shares]
    assert served == [1, 2, 3, 1, 2, 3]


waiting_lists = st.lists(st.integers(1, 50), max_size=12).map(
    lambda ns: [Waiting(seq_id, n) for seq_id, n in enumerate(ns)]
)


@given(waiting_lists, st.integers(1, 40), st.integers(0, 20))
def test_a_batch_is_full_or_takes_everything(waiting: list[Waiting], n_batch: int, start: int) -> None:
    shares, _ = compose(waiting, n_batch, start)
    total = sum(share.n_inputs for share in shares)
    assert total == min(n_batch, sum(w.n_pending for w in waiting))
    assert len({share.seq_id for share in shares}) == len(shares)


@given(waiting_lists, st.integers(1, 40), st.integers(0, 20))
def test_nobody_gets_more_than_it_has(waiting: list[Waiting], n_batch: int, start: int) -> None:
    pending = {w.seq_id: w.n_pending for w in waiting}
    for share in compose(waiting, n_batch, start)[0]:
        assert 0 < share.n_inputs <= pending[share.seq_id]
        assert share.is_last == (share.n_inputs == pending[share.seq_id])


@given(waiting_lists, st.integers(1, 40), st.integers(0, 20), st.integers(1, 20))
def test_prompts_beside_streams_keep_to_what_they_may_take(
    waiting: list[Waiting], n_batch: int, start: int, n_prompt: int
) -> None:
    shares, _ = compose(waiting, n_batch, start, n_prompt)
    pending = {w.seq_id: w.n_pending for w in waiting}
    n_stream = sum(n == 1 for n in pending.values())
    taken = sum(share.n_inputs for share in shares if pending[share.seq_id] > 1)
    wanted = sum(n for n in pending.values() if n > 1)
    left = n_batch - min(n_stream, n_batch)
    assert taken == min(wanted, left, n_prompt if n_stream else n_batch)


def test_a_group_is_not_cut_and_comes_first_next_time() -> None:
    waiting = [Waiting(1, 6), Waiting(2, 20, groups_of([(4, 8)]))]
    shares, start = compose(waiting, n_batch=16, start=0)
    assert shares == [Share(1, 6, is_last=True), Share(2, 4, is_last=False)]
    waiting = [Waiting(1, 6), Waiting(2, 16, groups_of([(0, 8)]))]
    shares, start = compose(waiting, n_batch=12, start=start)
    assert (shares, start) == ([Share(1, 6, is_last=True)], 1)
    shares, start = compose(waiting, n_batch=12, start=start)
    assert shares == [Share(2, 12, is_last=False)]


def test_a_group_takes_more_than_a_prompt_may_beside_streams_but_not_more_than_the_batch() -> None:
    waiting = [Waiting(1, 1), Waiting(2, 20, groups_of([(0, 8)]))]
    shares, _ = compose(waiting, n_batch=16, start=0, n_prompt=4)
    assert shares == [Share(1, 1, is_last=True), Share(2, 8, is_last=False)]
    shares, start = compose(waiting, n_batch=8, start=0, n_prompt=4)
    assert (shares, start) == ([Share(2, 8, is_last=False)], 0)
    shares, _ = compose(waiting, n_batch=8, start=0, n_prompt=4, may_be_alone=False)
    assert shares == [Share(1, 1, is_last=True)]


spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=4)


@given(
    st.dictionaries(st.integers(0, 5), st.tuples(st.integers(49, 90), spans)),
    st.integers(0, 3),
    st.integers(48, 64),  # as many as groups may be merged to
    st.integers(1, 40),
)
def test_prompts_with_groups_all_end_and_none_is_cut(
    prompts: dict[int, tuple[int, list[tuple[int, int]]]], n_stream: int, n_batch: int, n_prompt: int
) -> None:
    groups = {i: groups_of(its_spans) for i, (_, its_spans) in prompts.items()}
    place = dict.fromkeys(prompts, 0)
    streams = [Waiting(100 + i, 1) for i in range(n_stream)]
    start, were_served = 0, True
    while unfinished := [i for i in prompts if place[i] < prompts[i][0]]:
        waiting = [Waiting(i, prompts[i][0] - place[i], groups[i].since(place[i])) for i in unfinished]
        shares, start = compose([*streams, *waiting], n_batch, start, n_prompt, may_be_alone=were_served)
        assert sum(share.n_inputs for share in shares) <= n_batch
        mine = [share for share in shares if share.seq_id in prompts]
        n_served = len(shares) - len(mine)
        assert n_served in (0, n_stream)
        assert mine or not were_served
        assert n_served == n_stream or were_served  # streams wait for one batch at most
        were_served = n_served == n_stream
        for share in mine:
            place[share.seq_id] += share.n_inputs
            assert groups[share.seq_id].before(place[share.seq_id]) == place[share.seq_id]
