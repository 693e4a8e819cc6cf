"""Which encoder, which exits: the configuration of a model with exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from offramp.errors import InvalidInput
from offramp.model.bypass import Bypass
from offramp.model.token_exit.config import TokenExit


class MultiExitConfig(PreTrainedConfig):
    """Which encoder, which exits.

    Args:
        backbone: the encoder's configuration, or its data form.
        head: "linear", "shared_pooler", "pooler" or "attention" (see `offramp.model.heads`).
        pooling: "first" or "mean".
        exit_layers: increasing layer numbers that end with the last layer; None = after every layer.
        exit_dropout: before each exit's last linear map, in training.
        bypass: a `Bypass` or its data form; None = the exits read what the next block reads.
        certainty: whether there is a gate that learns how sure each exit is.
        memory: MPEE's lambda, in (0, 1]: an exit says (1 - lambda) of what it said so far and lambda of what it says
            now (Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective Early
            Exiting", COLING 2022, section 3.2); None = each exit speaks for itself.
        token_exit: a `TokenExit` or its data form; None = all tokens stay.
        own_head: set where the last exit is the head of a fine-tuned model (see `offramp.model.heads`).
    """

    model_type = "multi_exit"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["logits_by_exit", "certainty_by_exit", "exit_layers"]

    def __init__(
        self,
        backbone: PreTrainedConfig | Mapping[str, Any] | None = None,
        head: str = "linear",
        pooling: str = "first",
        exit_layers: Sequence[int] | None = None,
        exit_dropout: float = 0.1,
        bypass: Bypass | Mapping[str, Any] | None = None,
        certainty: bool = False,
        memory: float | None = None,
        token_exit: TokenExit | Mapping[str, Any] | None = None,
        own_head: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone: Any = AutoConfig.for_model(**backbone) if isinstance(backbone, Mapping) else backbone
        self.head = head
        self.pooling = pooling
        self.exit_dropout = exit_dropout
        self.bypass = asdict(bypass) if isinstance(bypass, Bypass) else bypass
        self.certainty = certainty
        self.memory = memory
        leaving = TokenExit(**token_exit) if isinstance(token_exit, Mapping) else token_exit
        self.token_exit = None if leaving is None else leaving.to_data()
        self.own_head = own_head
        if memory is not None and not 0 < memory <= 1:
            raise InvalidInput(f"memory must be above 0 and at most 1, got {memory}")
        self.exit_layers: Any = None if exit_layers is None else list(exit_layers)
        if self.backbone is not None:  # transformers also builds configurations without arguments
            self.initializer_range = self.backbone.initializer_range
            self.pad_token_id = getattr(self.backbone, "pad_token_id", None)  # images have no padding
            depth = self.backbone.num_hidden_layers
            self.exit_layers = list(range(1, depth + 1)) if self.exit_layers is None else self.exit_layers
            _check_exit_layers(self.exit_layers, depth)
            if leaving is not None:
                leaving.check_depth(depth)
        super().__init__(**kwargs)


def _check_exit_layers(layers: Sequence[int], depth: int) -> None:
    rising = all(low < high for low, high in pairwise((0, *layers)))
    if not rising or not all(isinstance(layer, int) for layer in layers) or depth not in layers[-1:]:
        raise InvalidInput(f"exit_layers must rise from 1 or more to the last layer, {depth}; got {list(layers)}")
