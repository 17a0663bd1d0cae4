"""Index arrays of a batch, made without a cache that would decide them."""

from collections.abc import Sequence

import numpy as np

from kernels.ops.op import Array


def index_arrays(
    depths: Sequence[int], n_tokens: int, pages_each: int, page_size: int, n_vocab: int
) -> dict[str, Array]:
    """The inputs of `actors.runner.models.decoder.Batch`; sequence i owns pages i * pages_each and on."""
    rng = np.random.default_rng(sum(depths))
    n_seq = len(depths)
    rows = np.repeat(np.arange(n_seq, dtype=np.int32), n_tokens)
    positions = np.concatenate([np.arange(d, d + n_tokens, dtype=np.int32) for d in depths])
    n_pages = -(-(max(depths) + n_tokens) // page_size)
    tables = np.arange(n_seq, dtype=np.int32)[:, None] * np.int32(pages_each) + np.arange(
        n_pages, dtype=np.int32
    )
    cells = tables[rows, positions // page_size] * np.int32(page_size) + positions % np.int32(page_size)
    return {
        "tokens": rng.integers(0, n_vocab, n_seq * n_tokens, np.int32),
        "positions": positions,
        "cells": cells.astype(np.int32),
        "rows": rows,
        "n_visible": positions + np.int32(1),
        "tables": tables,
        "outputs": np.arange(n_tokens - 1, n_seq * n_tokens, n_tokens, dtype=np.int32),
    }
