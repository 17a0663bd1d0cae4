"""SentencePiece BPE straight from its definition, slowly: the judge of the engine."""

from collections.abc import Mapping, Sequence


def merge_by_score(
    text: str, ids: Mapping[str, int], scores: Sequence[float], first_byte_id: int = 3
) -> list[int]:
    """Join the best-scored pair of neighbours, of equals the leftmost, until no join is a token; rest as bytes.

    Kudo and Richardson, SentencePiece (arXiv:1808.06226); byte tokens are numbered from first_byte_id.
    """
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        joins = [
            (a + b, at) for at, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False)) if a + b in ids
        ]
        if not joins:
            break
        joined, at = max(joins, key=lambda join: (scores[ids[join[0]]], -join[1]))
        symbols[at : at + 2] = [joined]
    out: list[int] = []
    for symbol in symbols:
        out += [ids[symbol]] if symbol in ids else [first_byte_id + byte for byte in symbol.encode()]
    return out
