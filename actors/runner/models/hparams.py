"""The sizes of a model, read once from its file's metadata; later code uses only these names.

`families.read_hparams` reads them as the file's family wants it, `read_sizes` what all families share.
"""

from dataclasses import dataclass

from actors.errors import ModelError, Unsupported
from actors.runner.gguf.reader import GGUFFile


@dataclass(frozen=True, slots=True)
class Hparams:
    """Sizes of a decoder with grouped-query attention."""

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx_train: int
    eps: float
    attn_scale: float  # of queries times keys
    windows: tuple[int, ...]  # see `window_of`
    chunks: tuple[int, ...]  # see `chunk_of`
    n_tap: int = 0  # of the convolutions in recurrent layers; 0: there are none
    recurrent: tuple[bool, ...] = ()  # see `is_recurrent`
    embd_scale: float = 1.0  # of a token's embedding on its way in
    logit_softcap: float = 0.0  # 0: none
    n_expert: int = 0  # of a layer that has any
    n_expert_used: int = 0  # of them, for a row
    n_ff_exp: int = 0  # units of one expert
    experts: tuple[bool, ...] = ()  # see `has_experts`
    is_unit_normed: bool = False  # queries and keys, without weights
    temperature: float = 0.0  # of queries in layers without rope, see `kernels.ops.attention`
    temperature_length: int = 0  # 0: they are as they are
    n_encoder: int = 0  # layers of an encoder, which come first
    n_bucket: int = 0  # of distances with a bias of their own
    start_token: int = -1  # what a decoder behind an encoder begins with

    @property
    def q_width(self) -> int:
        """Width of all query heads."""
        return self.n_head * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads; a cell of the cache holds one of each."""
        return self.n_head_kv * self.head_dim

    @property
    def conv_width(self) -> int:
        """Width of what goes into a convolution: two gates and a value."""
        return 3 * self.n_embd

    def is_recurrent(self, layer: int) -> bool:
        """Whether the layer has a state of one size in place of attention."""
        return bool(self.recurrent) and self.recurrent[layer]

    def has_experts(self, layer: int) -> bool:
        """Whether the layer has experts in place of a feed-forward part."""
        return bool(self.experts) and self.experts[layer]

    def window_of(self, layer: int) -> int:
        """Cells before its own that a row of this layer sees; 0: all of them."""
        return self.windows[layer]

    def chunk_of(self, layer: int) -> int:
        """Positions in a chunk: a row of this layer sees its own chunk up to itself; 0: all is one."""
        return self.chunks[layer]


def refuse_images(file: GGUFFile) -> None:
    """Unsupported for a file that also sees images."""
    key = f"{file.get_str('general.architecture')}.vision.block_count"
    if file.get_int(key, 0) > 0:
        raise Unsupported(
            "images are not implemented, and the file holds the layers for them",
            where=f"{file.name}: {key}",
            mend="use a file of the text model alone; its images are in a second one (mmproj)",
        )


def read_sizes(file: GGUFFile, *, has_experts: bool = False) -> Hparams:
    """Sizes from `<arch>.*`; ModelError names a missing key, Unsupported what this build does not run.

    has_experts: whether the family has experts, of whom it reads itself.
    """
    arch = file.get_str("general.architecture")
    if not has_experts and file.get_int(f"{arch}.expert_count", 0) > 0:
        raise Unsupported(
            f"{arch} with experts is not implemented", where=f"{file.name}: {arch}.expert_count"
        )
    n_embd = file.get_int(f"{arch}.embedding_length")
    n_head = file.get_int(f"{arch}.attention.head_count")
    head_dim = file.get_int(f"{arch}.attention.key_length", n_embd // n_head)
    if file.get_int(f"{arch}.attention.value_length", head_dim) != head_dim:
        raise Unsupported("key and value heads of different length are not implemented", where=file.name)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("token_embd.weight [n_embd, n_vocab] is missing", where=file.name)
    n_layer = file.get_int(f"{arch}.block_count")
    kv_key = f"{arch}.attention.head_count_kv"
    n_head_kv = set(file.get_per_layer(kv_key, n_layer, n_head)) - {0}  # 0: a layer without attention
    if len(n_head_kv) != 1:
        raise Unsupported(
            "key/value heads of different number are not implemented", where=f"{file.name}: {kv_key}"
        )
    return Hparams(
        arch=arch,
        n_layer=n_layer,
        n_embd=n_embd,
        n_ff=file.get_int(f"{arch}.feed_forward_length"),
        n_vocab=embedding.shape[1],
        n_head=n_head,
        n_head_kv=n_head_kv.pop(),
        head_dim=head_dim,
        n_ctx_train=file.get_int(f"{arch}.context_length"),
        eps=file.get_float(f"{arch}.attention.layer_norm_rms_epsilon"),
        attn_scale=head_dim**-0.5,
        windows=(0,) * n_layer,
        chunks=(0,) * n_layer,
    )
