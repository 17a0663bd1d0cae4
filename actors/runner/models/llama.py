"""llama: grouped-query attention, rope on neighbouring pairs.  arXiv:2302.13971, arXiv:2407.21783.

Converters permute the query and key rows of llama files, so that neighbours turn together.
"""

from actors.runner.models.decoder import Attention

ROPE_STYLE = "norm"


class LlamaAttention(Attention):
    """Nothing beyond the common attention; some derivatives have biases."""
