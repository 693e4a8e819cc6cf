"""ModernBERT: norms before the halves of a layer and one at the end, rotary positions, local and global attention.

Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder ...", arXiv:2412.13663. Most layers
attend to a window of tokens, every third to all; each kind has rotary positions of its own. Every exit reads the
states through the norm at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from offramp.model.backbones.base import Backbone, real_tokens
from offramp.types.carry import Carry

GLOBAL, LOCAL = "full_attention", "sliding_attention"


@final
class ModernBert(Backbone):
    """`Carry.attention` is the mask of the global layers, `Carry.local_attention` that of the local ones.

    Flash attention takes one mask, (B, T), and knows the window itself.
    `Carry.position_embeddings` holds cosines and sines side by side, of the global layers and then of the local ones.
    """

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the encoder with random weights."""
        return AutoModel.from_config(config)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Return the path of the pre-trained pooler."""
        return None

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer."""
        names = ("input_ids", "inputs_embeds")
        hidden: Tensor = self.model.get_submodule("embeddings")(**{name: inputs.get(name) for name in names})
        mask = real_tokens(inputs)
        positions = inputs.get("position_ids")
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None] if positions is None else positions
        local = create_bidirectional_sliding_window_mask(self.model.config, hidden, attention_mask=mask)
        turns = [turn for kind in self._kinds() for turn in self.model.rotary_emb(hidden, positions, kind)]
        return Carry(
            hidden,
            mask,
            create_bidirectional_mask(self.model.config, hidden, attention_mask=mask),
            local_attention=local if local is not None and local.dim() == 4 else None,
            position_embeddings=torch.cat(turns, dim=-1),
        )

    def block(self, number: int, carry: Carry) -> Carry:
        """Run one layer."""
        assert carry.position_embeddings is not None  # set in `embed`
        layer: Any = self.model.layers[number]
        turns = carry.position_embeddings.chunk(2 * len(self._kinds()), dim=-1)
        start = 2 * self._kinds().index(layer.attention_type)
        local = carry.local_attention if layer.attention_type == LOCAL else None
        mask = carry.attention if local is None else local
        hidden = layer(carry.hidden, attention_mask=mask, position_embeddings=turns[start : start + 2])
        return replace(carry, hidden=hidden)

    def exit_states(self, hidden: Tensor) -> Tensor:
        """Apply the norm at the end of the encoder."""
        normed: Tensor = self.model.final_norm(hidden)
        return normed

    def _kinds(self) -> list[str]:
        return [kind for kind in (GLOBAL, LOCAL) if kind in self.model.config.layer_types]
