"""The residual networks of CIFAR, block by block: an exit after every two convolutions.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: a 3x3 convolution, then three stages
of n blocks of two 3x3 convolutions, on maps of 32, 16 and 8 pixels with 16, 32 and 64 channels; 6n + 2 layers that
count, so that n = 9 is ResNet-56. Shortcuts have no weights (option A: every second pixel, new channels are zero).
PABEE and PCEE-BERT put a classifier after every block; each reads the mean over the map.

transformers has no such model, so it is here, registered with the Auto classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, final

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from offramp.errors import InvalidInput
from offramp.model.backbones.base import Backbone
from offramp.types.carry import Carry


class CifarResNetConfig(PreTrainedConfig):
    """Depth and width of a CIFAR ResNet.

    Args:
        depths: basic blocks of each stage; (9, 9, 9) is ResNet-56.
        hidden_sizes: channels of each stage, rising; each stage after the first halves the map.
        num_channels: of the images.
        initializer_range: of exits; convolutions start as in He et al.
    """

    model_type = "cifar_resnet"

    def __init__(
        self,
        depths: Sequence[int] = (9, 9, 9),
        hidden_sizes: Sequence[int] = (16, 32, 64),
        num_channels: int = 3,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.depths, self.hidden_sizes = list(depths), list(hidden_sizes)
        if len(self.depths) != len(self.hidden_sizes) or not self.depths or min(self.depths) < 1:
            raise InvalidInput(f"depths and hidden_sizes need a number for each stage, got {depths}, {hidden_sizes}")
        if self.hidden_sizes != sorted(self.hidden_sizes):
            raise InvalidInput(f"hidden_sizes must rise, since shortcuts only add channels; got {hidden_sizes}")
        self.num_channels = num_channels
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Return the number of basic blocks."""
        return sum(self.depths)

    @property
    def hidden_size(self) -> int:
        """Return the channels of the last block."""
        return self.hidden_sizes[-1]


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, and a shortcut around them.

    Args:
        channels: channels in.
        width: channels out, at least as many.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, width - channels
        self.first = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, width, H / stride, W / stride) of (B, channels, H, W)."""
        residual = self.second_norm(self.second(F.relu(self.first_norm(self.first(hidden)))))
        if self.stride > 1 or self.added:
            hidden = F.pad(hidden[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(residual + hidden)


class CifarResNet(PreTrainedModel):
    """The network without a classifier."""

    config_class = CifarResNetConfig
    base_model_prefix = "resnet"
    main_input_name = "pixel_values"

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        widths = CifarResNetCut.widths(config)
        strided = {sum(config.depths[:stage]) for stage in range(1, len(config.depths))}  # of the later stages
        self.stem = nn.Conv2d(config.num_channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.ModuleList(
            BasicBlock(widths[max(number - 1, 0)], width, 2 if number in strided else 1)
            for number, width in enumerate(widths)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Return the map (B, D, H, W) of images (B, channels, H, W)."""
        return F.relu(self.stem_norm(self.stem(pixel_values.to(self.dtype))))

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, return_dict: bool = True
    ) -> BaseModelOutputWithNoAttention | tuple[Tensor, ...]:
        """Return the map (B, D, H, W) after the last block; with `output_hidden_states` all maps."""
        states = [self.embed(pixel_values)]
        for block in self.blocks:
            states.append(block(states[-1]))
        output = BaseModelOutputWithNoAttention(states[-1], tuple(states) if output_hidden_states else None)
        return output if return_dict else output.to_tuple()


@final
class CifarResNetCut(Backbone):
    """The network, block by block."""

    input_name: ClassVar[str] = "pixel_values"

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the encoder with random weights."""
        return CifarResNet(config)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Return the path of the pre-trained pooler."""
        return None

    @classmethod
    def widths(cls, config: PreTrainedConfig) -> list[int]:
        """Return the channels after each block."""
        stages = zip(config.depths, config.hidden_sizes, strict=True)
        return [width for depth, width in stages for _ in range(depth)]

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer."""
        hidden: Tensor = self.model.embed(inputs["pixel_values"])
        return Carry(hidden)

    def block(self, number: int, carry: Carry) -> Carry:
        """Run one layer."""
        block: nn.Module = self.model.blocks[number]
        return replace(carry, hidden=block(carry.hidden))

    def last_of_states(self, hidden: Tensor) -> Tensor:
        """Return the map (B, D, H, W)."""
        return hidden

    def exit_states(self, hidden: Tensor) -> Tensor:
        """Return the mean over the map, as one token (B, 1, D)."""
        return hidden.mean(dim=(2, 3)).unsqueeze(1)


AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig)
AutoModel.register(CifarResNetConfig, CifarResNet)
