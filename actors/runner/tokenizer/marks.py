"""Special tokens in text: finding them before the text between them is tokenised."""

import re
from collections.abc import Iterator, Mapping


class Marks:
    """A set of texts that stand for one token each, and are found in text wherever they occur.

    Of marks that begin at the same character the longest is taken, and the search goes on behind it.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        """ids: the marks' texts and their tokens; an empty text marks nothing."""
        self._ids = {text: token_id for text, token_id in ids.items() if text}
        self._n_chars = _lengths_by_first(self._ids)
        # as alternatives, thousands of marks would cost thousands of tries at each "<": search for heads only
        self._heads = re.compile(_heads_pattern(self._ids)) if self._ids else None

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text in order: (text between marks, None), never empty, and (a mark, its token)."""
        done = at = 0
        while (head := self._heads.search(text, at) if self._heads else None) is not None:
            mark = self._longest(text, head.start())
            if mark is None:
                at = head.start() + 1
                continue
            if head.start() > done:
                yield text[done : head.start()], None
            yield mark, self._ids[mark]
            done = at = head.start() + len(mark)
        if done < len(text):
            yield text[done:], None

    def _longest(self, text: str, at: int) -> str | None:
        for n in self._n_chars[text[at]]:
            if (candidate := text[at : at + n]) in self._ids:
                return candidate
        return None


def _lengths_by_first(ids: Mapping[str, int]) -> dict[str, list[int]]:
    lengths: dict[str, set[int]] = {}
    for text in ids:
        lengths.setdefault(text[0], set()).add(len(text))
    return {first: sorted(ns, reverse=True) for first, ns in lengths.items()}


def _heads_pattern(ids: Mapping[str, int]) -> str:
    """Matches the first two characters of every mark, or the one there is."""
    seconds: dict[str, set[str]] = {}
    for text in ids:
        seconds.setdefault(text[0], set()).add(text[1:2])
    return "|".join(
        re.escape(first) if "" in after else f"{re.escape(first)}[{''.join(map(re.escape, sorted(after)))}]"
        for first, after in sorted(seconds.items())
    )
