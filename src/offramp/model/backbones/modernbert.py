"""ModernBERT: norms before the parts of a layer and one at the end, rotary positions, local and global attention.

Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder ...", arXiv:2412.13663. Most layers see
a window of tokens, every third sees all; each kind has rotary positions of its own. An exit reads the states through
the norm at the end, as the last one always did.
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
        """See `Backbone.build`."""
        return AutoModel.from_config(config)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """See `Backbone.pooler_path`."""
        return None

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """See `Backbone.embed`."""
        hidden: Tensor = self.model.get_submodule("embeddings")(inputs["input_ids"])
        mask = real_tokens(inputs)
        told: dict[str, Any] = {"config": self.model.config, "inputs_embeds": hidden, "attention_mask": mask}
        places = inputs.get("position_ids")
        places = torch.arange(hidden.shape[1], device=hidden.device)[None] if places is None else places
        local = create_bidirectional_sliding_window_mask(**told)
        turns = [turn for kind in self._kinds() for turn in self.model.rotary_emb(hidden, places, kind)]
        return Carry(
            hidden,
            mask,
            create_bidirectional_mask(**told),
            local_attention=local if local is not None and local.dim() == 4 else None,
            position_embeddings=torch.cat(turns, dim=-1),
        )

    def block(self, number: int, carry: Carry) -> Carry:
        """See `Backbone.block`."""
        assert carry.position_embeddings is not None  # set in `embed`
        layer: Any = self.model.layers[number]
        turns = carry.position_embeddings.chunk(2 * len(self._kinds()), dim=-1)
        start = 2 * self._kinds().index(layer.attention_type)
        local = carry.local_attention if layer.attention_type == LOCAL else None
        mask = carry.attention if local is None else local
        hidden = layer(carry.hidden, attention_mask=mask, position_embeddings=turns[start : start + 2])
        return replace(carry, hidden=hidden)

    def read(self, hidden: Tensor) -> Tensor:
        """See `Backbone.read`."""
        normed: Tensor = self.model.final_norm(hidden)
        return normed

    def _kinds(self) -> list[str]:
        return [kind for kind in (GLOBAL, LOCAL) if kind in self.model.config.layer_types]
