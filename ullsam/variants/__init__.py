"""VLSA variants beside the paper's: where else the language model's states may enter SAM's prompts.

Letters: B images, I objects of one image, P prompt tokens, N image tokens, T words' tokens, D LLM width, C SAM width, h w
feature grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.errors import InputError
from ullsam.types import LanguageStates
from ullsam.vlsa import VLSA, PaperVLSA, VlsaShape, built_in, norm_mlp


@built_in("residual")
class ResidualVLSA(PaperVLSA):
    """Adds the paper's knowledge to SAM's own dense prompt behind a gate that starts closed: training begins as SAM.

    Source: the tanh gates of Flamingo (Alayrac et al. 2022).
    """

    def __init__(self, shape: VlsaShape, dropout: float = 0.0, gate: float = 0.0):
        super().__init__(shape, learned_scale_shift=False, dropout=dropout)
        self.gate = nn.Parameter(torch.full((1,), gate))

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return sparse, dense + self.gate.tanh() * knowledge


@built_in("tokens")
class TokenVLSA(VLSA):
    """Hands knowledge over as a few extra prompt tokens beside the points; the dense prompt stays SAM's own.

    Source: the queries of BLIP-2 (Li et al. 2023), in one layer.
    """

    def __init__(self, shape: VlsaShape, count: int = 4, heads: int = 4):
        super().__init__(shape)
        self.norm = nn.LayerNorm(shape.llm_dim)
        self.states = nn.Linear(shape.llm_dim, shape.sam_dim)
        self.queries = nn.Parameter(torch.randn(count, shape.sam_dim) * 0.02)
        self.attention = nn.MultiheadAttention(shape.sam_dim, heads, batch_first=True)

    def forward(self, states: LanguageStates) -> Tensor:
        x = self.states(self.norm(states.image))  # (B, N, D) -> (B, N, C)
        queries = self.queries.expand(len(x), -1, -1)  # (B, count, C)
        return self.attention(queries, x, x, need_weights=False)[0]

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([sparse, knowledge], dim=1), dense  # (I, P + count, C)


@built_in("last_word")
class LastWordVLSA(VLSA):
    """The state of the last word's token becomes one more prompt token.

    After the image it has seen the image and the words; before it, the words alone.
    Source: the <SEG> token of LISA (Lai et al. 2024), here an ordinary word.
    """

    def __init__(self, shape: VlsaShape, reads: str = "after"):
        super().__init__(shape)
        self.reads = reads
        self.mlp = norm_mlp(shape.llm_dim, shape.sam_dim, shape.sam_dim)

    def forward(self, states: LanguageStates) -> Tensor:
        return self.mlp(states.last)[:, None]  # (B, D) -> (B, 1, C)

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([sparse, knowledge.to(sparse)], dim=1), dense  # (I, P + 1, C)


@built_in("layers")
class LayersVLSA(LastWordVLSA):
    """`last_word` from a learned mixture of several layers.

    Source: the scalar mix of ELMo (Peters et al. 2018).
    """

    def __init__(self, shape: VlsaShape, layers: tuple[int, ...] = (10, 20), reads: str = "after"):
        super().__init__(shape, reads)
        self.layers = tuple(layers)
        self.weights = nn.Parameter(torch.zeros(len(self.layers) + 1))

    def forward(self, states: LanguageStates) -> Tensor:
        found = [states.last, *(states.layers[n].last for n in self.layers)]
        normed = torch.stack([F.layer_norm(x, x.shape[-1:]) for x in found])  # (layers + 1, B, D)
        return self.mlp(torch.einsum("l,lbd->bd", self.weights.softmax(0), normed))[:, None]


@built_in("film")
class FilmVLSA(VLSA):
    """The words scale and shift each channel of SAM's dense prompt.

    Source: feature-wise linear modulation (Perez et al. 2018).
    """

    def __init__(self, shape: VlsaShape, reads: str = "after"):
        super().__init__(shape)
        self.reads = reads
        self.mlp = norm_mlp(shape.llm_dim, shape.sam_dim, 2 * shape.sam_dim)

    def forward(self, states: LanguageStates) -> Tensor:
        return self.mlp(states.mean)  # (B, D) -> (B, 2C)

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = knowledge.to(dense)[..., None, None].chunk(2, dim=1)  # each (I, C, 1, 1)
        return sparse, dense * (1 + scale) + shift


@built_in("paper_film")
class PaperFilmVLSA(PaperVLSA):
    """The paper's dense prompt, whose channels the words after the image scale and shift: a new phrase costs its own tokens.

    Source: feature-wise linear modulation (Perez et al. 2018) of the paper's module.
    """

    reads = "after"

    def __init__(self, shape: VlsaShape, learned_scale_shift: bool = True, dropout: float = 0.0):
        super().__init__(shape, learned_scale_shift, dropout)
        self.film = norm_mlp(shape.llm_dim, shape.sam_dim, 2 * shape.sam_dim)

    def forward(self, states: LanguageStates) -> Tensor:
        scale, shift = self.film(states.last)[..., None, None].chunk(2, dim=1)  # each (B, C, 1, 1)
        return super().forward(states) * (1 + scale) + shift


@built_in("cross_attention")
class CrossAttentionVLSA(VLSA):
    """Each prompt token looks at the states of all image tokens and words, behind a gate that starts ajar.

    Source: the gated cross-attention of Flamingo (Alayrac et al. 2022).
    """

    def __init__(self, shape: VlsaShape, heads: int = 4, gate: float = 0.5, reads: str = "after"):
        super().__init__(shape)
        self.reads = reads
        self.norm, self.states = nn.LayerNorm(shape.llm_dim), nn.Linear(shape.llm_dim, shape.sam_dim)
        self.attention = nn.MultiheadAttention(shape.sam_dim, heads, batch_first=True)
        self.gate = nn.Parameter(torch.full((1,), gate))

    def forward(self, states: LanguageStates) -> Tensor:
        words = states.words if states.words is not None else states.image[:, :0]
        x = self.states(self.norm(torch.cat([states.image, words], dim=1)))  # (B, N + T, C)
        valid = (
            x.new_ones(x.shape[:2])
            if states.valid is None
            else F.pad(states.valid.to(x), (x.shape[1] - words.shape[1], 0), value=1)
        )
        return torch.cat([x, valid[..., None]], dim=2)  # (B, N + T, C + 1), the last channel 0 at padding

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        x, padding = knowledge[..., :-1].to(sparse), knowledge[..., -1] < 0.5
        found = self.attention(sparse, x, x, key_padding_mask=padding, need_weights=False)[0]
        return sparse + self.gate.tanh() * found, dense


@built_in("class_id")
class ClassIdVLSA(VLSA):
    """A learned vector for each known text and no language model: the control that shows what words could do at best.

    Args:
        classes: known texts; a list among them holds texts of one meaning.
    """

    reads = "after"

    def __init__(self, shape: VlsaShape, classes: tuple = ()):
        super().__init__(shape)
        rows = [[x] if isinstance(x, str) else x for x in classes]
        self.index = {text: i for i, row in enumerate(rows, 1) for text in row}  # 0: no words
        self.vectors = nn.Embedding(len(rows) + 1, shape.sam_dim)

    def forward(self, states: LanguageStates) -> Tensor:
        texts = states.texts or (None,) * len(states.image)
        if unknown := sorted({x for x in texts if x is not None and x not in self.index}):
            raise InputError(f"The variant 'class_id' does not know {', '.join(unknown)}; name them in its option classes.")
        index = [0 if text is None else self.index[text] for text in texts]
        return self.vectors(torch.tensor(index, device=self.vectors.weight.device))[:, None]  # (B, 1, C)

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([sparse, knowledge], dim=1), dense
