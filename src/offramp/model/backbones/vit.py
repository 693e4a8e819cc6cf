"""ViT: a transformer over the patches of an image, with norms before the halves of a layer and one at the end.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021. Every exit reads the states through the norm at the
end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, final

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from offramp.model.backbones.base import Backbone, OwnHead
from offramp.types.carry import Carry


@final
class ViT(Backbone):
    """ViT, layer by layer.

    Images of one size have no padding, so there is no mask; the mean is over the patches and the class token.
    """

    input_name: ClassVar[str] = "pixel_values"

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the encoder with random weights."""
        return AutoModel.from_config(config, add_pooling_layer=False)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Return the path of the pre-trained pooler."""
        usual = config.pooler_output_size == config.hidden_size and config.pooler_act == "tanh"
        return "pooler.dense" if usual else None

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead:
        """Return the paths of a fine-tuned classifier's head."""
        return OwnHead("classifier")

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer."""
        pixels = inputs["pixel_values"].to(self.model.dtype)
        hidden: Tensor = self.model.get_submodule("embeddings")(pixels)
        return Carry(hidden)

    def block(self, number: int, carry: Carry) -> Carry:
        """Run one layer."""
        layer: nn.Module = self.model.layers[number]
        return replace(carry, hidden=layer(carry.hidden))

    def last_of_states(self, hidden: Tensor) -> Tensor:
        """Return the states before the norm at the end."""
        return hidden

    def exit_states(self, hidden: Tensor) -> Tensor:
        """Apply the norm at the end of the encoder."""
        normed: Tensor = self.model.layernorm(hidden)
        return normed
