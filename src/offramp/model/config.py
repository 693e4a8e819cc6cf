"""The configuration of a model with exits: its encoder and its exits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from offramp.data.batching import COUNTED_FROM_PAD
from offramp.data.label_names import text_names
from offramp.errors import InvalidInput
from offramp.model.bypass import Bypass
from offramp.model.lexical.config import LexicalExit
from offramp.model.token_exit.config import TokenExit
from offramp.types.file_format import CONFIG_FORMAT, newer_format
from offramp.types.problem_types import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL


class MultiExitConfig(PreTrainedConfig):
    """The encoder and the exits of a model.

    `config.json` carries a format number (see `CONFIG_FORMAT`); a file without one is of format 1.

    Args:
        backbone: the encoder's configuration, or its data form.
        head: "linear", "shared_pooler", "pooler" or "attention" (see `offramp.model.heads`).
        pooling: "first" or "mean".
        exit_layers: increasing layer numbers that end with the last layer; None = after every layer.
        exit_dropout: before each exit's last linear map, in training; `from_backbone` sets 0 for an encoder without.
        bypass: a `Bypass` or its data form; None = the exits read what the next block reads.
        certainty: True adds a gate that learns whether each exit is right.
        memory: MPEE's lambda, in (0, 1]: an exit's logits are (1 - lambda) times the mixture so far plus lambda times
            its own (Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective
            Early Exiting", COLING 2022, section 3.2); None = no mixing.
        token_exit: a `TokenExit` or its data form; None = all tokens stay.
        lexical: a `LexicalExit` or its data form, with numbers for None; None = no exit before the first layer.
        own_head: set if the last exit is the head of a fine-tuned model (see `offramp.model.heads`).

    Raises:
        InvalidInput: a value out of its range, two classes of one name, a file of a later format, or an exit before the
            first layer of an encoder that reads no tokens.

    Example:
        >>> config = offramp.MultiExitConfig.from_pretrained(folder)
        >>> config.exit_layers, config.pooling, config.format
        ([1, 2, 3, 4], 'mean', 1)
    """

    model_type = "multi_exit"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "logits_by_exit",
        "certainty_by_exit",
        "exit_layers",
        "hidden_states",
    ]

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
        lexical: LexicalExit | Mapping[str, Any] | None = None,
        own_head: str | None = None,
        **kwargs: Any,
    ) -> None:
        format = kwargs.pop("format", CONFIG_FORMAT)
        _check_format(format, kwargs.get("name_or_path"))
        self.format = format if head == "attention" else 1
        self.backbone: Any = AutoConfig.for_model(**backbone) if isinstance(backbone, Mapping) else backbone
        self.head = head
        self.pooling = pooling
        self.exit_dropout = exit_dropout
        self.bypass = asdict(bypass) if isinstance(bypass, Bypass) else bypass
        self.certainty = certainty
        self.memory = memory
        removal = TokenExit(**token_exit) if isinstance(token_exit, Mapping) else token_exit
        self.token_exit = None if removal is None else removal.to_data()
        self.own_head = own_head
        if memory is not None and not 0 < memory <= 1:
            raise InvalidInput(f"memory must be above 0 and at most 1, got {memory}")
        self.exit_layers: Any = None if exit_layers is None else list(exit_layers)
        if self.backbone is not None:  # transformers also builds configurations without arguments
            resolve_pad_token(self.backbone)
            self.initializer_range = self.backbone.initializer_range
            self.pad_token_id = getattr(self.backbone, "pad_token_id", None)  # images have no padding
            depth = self.backbone.num_hidden_layers
            self.exit_layers = list(range(1, depth + 1)) if self.exit_layers is None else self.exit_layers
            _check_exit_layers(self.exit_layers, depth)
            if removal is not None:
                removal.check_depth(depth)
        super().__init__(**_with_text_names(kwargs))
        self.lexical: dict[str, Any] | None = None
        self.set_lexical(LexicalExit(**lexical) if isinstance(lexical, Mapping) else lexical)

    def set_lexical(self, setting: LexicalExit | None) -> None:
        """Set the exit before the first layer, with numbers for None; None = there is none.

        Raises:
            InvalidInput: the encoder reads no tokens.
        """
        if setting is not None and getattr(self.backbone, "vocab_size", None) is None:
            raise InvalidInput(f"a lexical exit reads tokens, and a {self.backbone.model_type} encoder has none")
        self.lexical = None if setting is None else setting.resolved(self.num_labels, self.vocab_size).to_data()

    @property
    def layers(self) -> list[int]:
        """Return the layer number of each exit; 0 = before the first layer."""
        layers: list[int] = self.exit_layers if self.lexical is None else [0, *self.exit_layers]
        return layers

    @property
    def vocab_size(self) -> int:
        """Return the number of rows of the encoder's embedding; transformers sets it where that changes."""
        size: int = self.backbone.vocab_size
        return size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.backbone.vocab_size = size

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the configuration of a file's values; without a format they are of format 1."""
        return super().from_dict({"format": 1, **config_dict}, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the values of a configuration file, with the name of its folder for error messages."""
        values, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return {**values, "name_or_path": str(pretrained_model_name_or_path)}, unused


def resolve_problem_type(config: MultiExitConfig) -> None:
    """Set a configuration's kind of problem where it has none: regression for one output, else single label.

    Raises:
        InvalidInput: a kind that does not exist.
    """
    if config.problem_type is None:
        config.problem_type = REGRESSION if config.num_labels == 1 else SINGLE_LABEL
    if config.problem_type not in PROBLEM_TYPES:
        raise InvalidInput(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {config.problem_type!r}")


def resolve_pad_token(encoder: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Set the pad token of an encoder that counts positions from it and has none: the tokenizer's, else its family's.

    Args:
        encoder: the encoder's configuration; changed in place. Of other families any token serves, under a mask.
        tokenizer: the encoder's, where it is at hand.

    Raises:
        InvalidInput: a pad token beyond the embedding.
    """
    if getattr(encoder, "pad_token_id", None) is None and encoder.model_type in COUNTED_FROM_PAD:
        own = None if tokenizer is None else tokenizer.pad_token_id
        encoder.pad_token_id = type(encoder)().pad_token_id if own is None else own
    pad, rows = getattr(encoder, "pad_token_id", None), getattr(encoder, "vocab_size", None)
    if pad is not None and rows is not None and pad >= rows:
        raise InvalidInput(f"the encoder's pad_token_id is {pad}, but its embedding has {rows} rows, from 0")


def _check_format(format: Any, folder: str | None) -> None:
    if not isinstance(format, int) or format > CONFIG_FORMAT:
        raise newer_format(os.path.join(folder or "", CONFIG_NAME), format, CONFIG_FORMAT)


def _with_text_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's values with names of classes as text, whatever wrote them.

    Raises:
        InvalidInput: two classes have one name.
    """
    if not values.get("id2label"):
        return dict(values)
    names = dict(zip(values["id2label"], text_names(values["id2label"].values()), strict=True))
    return {**values, "id2label": names, "label2id": {name: int(number) for number, name in names.items()}}


def _check_exit_layers(layers: Sequence[int], depth: int) -> None:
    rising = all(low < high for low, high in pairwise((0, *layers)))
    if not rising or not all(isinstance(layer, int) for layer in layers) or depth not in layers[-1:]:
        raise InvalidInput(f"exit_layers must rise from 1 or more to the last layer, {depth}; got {list(layers)}")
