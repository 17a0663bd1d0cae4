"""SentencePiece BPE straight from its definition, slowly: the judge of the engine."""

import itertools
from collections.abc import Mapping, Sequence


def merge_by_score(text: str, ids: Mapping[str, int], scores: Sequence[float]) -> list[int]:
    """Join the best-scored pair of neighbours, of equals the leftmost, until no join is a token.

    What is no token then becomes its bytes, whose tokens are numbered from 3.
    Kudo and Richardson, SentencePiece (arXiv:1808.06226).
    """
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        joins = [(a + b, at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids]
        if not joins:
            break
        joined, at = max(joins, key=lambda join: (scores[ids[join[0]]], -join[1]))
        symbols[at : at + 2] = [joined]
    out: list[int] = []
    for symbol in symbols:
        out += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return out
