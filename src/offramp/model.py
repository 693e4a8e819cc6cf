"""A Hugging Face model with an exit after every layer (or after some)."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput, cached_file, logging

from offramp.backbones.base import Backbone
from offramp.card import model_card, save_points
from offramp.engine.loop import run
from offramp.errors import InvalidInput, UnknownName
from offramp.heads import Heads
from offramp.objectives.base import depth_weighted, exit_losses
from offramp.policies.base import limits
from offramp.registry import load_backbone, load_policy
from offramp.values import (
    POINTS_FILE,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    Carry,
    ExitOutput,
    OperatingPoint,
    read_points,
)

logger = logging.get_logger(__name__)


class MultiExitConfig(PreTrainedConfig):
    """Which encoder, which exits.

    Args:
        backbone: the encoder's configuration, or its data form.
        head: "linear", "shared_pooler" or "pooler" (see `offramp.heads`).
        pooling: "first" or "mean".
        exit_layers: increasing layer numbers that end with the last layer; None = after every layer.
        exit_dropout: before each exit's last linear map, in training.
    """

    model_type = "multi_exit"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["logits_by_exit", "exit_layers"]

    def __init__(
        self,
        backbone: PreTrainedConfig | Mapping[str, Any] | None = None,
        head: str = "linear",
        pooling: str = "first",
        exit_layers: Sequence[int] | None = None,
        exit_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.backbone: Any = AutoConfig.for_model(**backbone) if isinstance(backbone, Mapping) else backbone
        self.head = head
        self.pooling = pooling
        self.exit_dropout = exit_dropout
        self.exit_layers: Any = None if exit_layers is None else list(exit_layers)
        if self.backbone is not None:  # transformers also builds configurations without arguments
            self.initializer_range = self.backbone.initializer_range
            self.pad_token_id = self.backbone.pad_token_id
            depth = self.backbone.num_hidden_layers
            self.exit_layers = list(range(1, depth + 1)) if self.exit_layers is None else self.exit_layers
            _check_exit_layers(self.exit_layers, depth)
        super().__init__(**kwargs)


def _check_exit_layers(layers: Sequence[int], depth: int) -> None:
    rising = all(low < high for low, high in pairwise((0, *layers)))
    if not rising or not all(isinstance(layer, int) for layer in layers) or depth not in layers[-1:]:
        raise InvalidInput(f"exit_layers must rise from 1 or more to the last layer, {depth}; got {list(layers)}")


@dataclass
class MultiExitOutput(ModelOutput):
    """What a forward pass gives; attributes or a tuple, as always in transformers.

    Attributes:
        loss: scalar, depth-weighted over the exits, where labels were given.
        logits: (B, C): the last exit's, or with an operating point set those of the exit at which each sample left.
        logits_by_exit: (B, L, C) at full depth.
        exit_layers: (B,) layer numbers, where an operating point was set.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_by_exit: Tensor | None = None
    exit_layers: Tensor | None = None

    @property
    def exit_logits(self) -> Tensor | None:
        """The logits of every exit, (L, B, C): a view of `logits_by_exit`."""
        return None if self.logits_by_exit is None else self.logits_by_exit.transpose(0, 1)


class MultiExitModel(PreTrainedModel):
    """An encoder with exits.

    `operating_points` holds the points that came with the weights, by name; save_pretrained writes them again.

    Relations: it is `Segments` for the adaptive loop (`layers`, `embed`, `block`, `exit`). In training, and as long as
    no operating point is set, forward runs every layer and returns every exit; with one set, forward leaves early.
    """

    config_class = MultiExitConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    accepts_loss_kwargs = False  # losses here are batch means; the Trainer divides by the accumulation steps

    def __init__(self, config: MultiExitConfig) -> None:
        super().__init__(config)
        if config.problem_type is None:
            config.problem_type = REGRESSION if config.num_labels == 1 else SINGLE_LABEL
        if config.problem_type not in PROBLEM_TYPES:
            raise InvalidInput(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {config.problem_type!r}")
        self._family = load_backbone(config.backbone.model_type)
        self.backbone = self._family.build(config.backbone)
        self.heads = Heads(
            config.head,
            config.pooling,
            len(config.exit_layers),
            config.backbone.hidden_size,
            config.num_labels,
            config.exit_dropout,
        )
        self.operating_points: dict[str, OperatingPoint] = {}
        self._leaving: OperatingPoint | None = None
        self.post_init()

    @property
    def _cut(self) -> Backbone:
        cut: Backbone = self._family(self.backbone)
        return cut

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Weights, configuration and operating points; see `transformers.PreTrainedModel.from_pretrained`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True gives a pair
        where = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder", "token") if name in kwargs}
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        name = pretrained_model_name_or_path  # None where the weights were given as a state dict
        path = cached_file(name, POINTS_FILE, **where, **quiet) if name is not None else None
        model.operating_points = read_points(path) if path else {}
        return loaded

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedConfig | PreTrainedModel,
        num_labels: int | None = None,
        *,
        id2label: Mapping[int, str] | None = None,
        problem_type: str | None = None,
        head: str = "linear",
        pooling: str = "first",
        exit_layers: Sequence[int] | None = None,
    ) -> MultiExitModel:
        """Put exits on an encoder.

        Args:
            backbone: a hub name or a local folder, a configuration (random weights) or a model, whose weights
                are copied.
            num_labels: how many outputs C; 1 is a regression. Default 2.
            id2label: names of the classes, in place of `num_labels`.
            problem_type: as in transformers; None = regression for one output, else single label.
            head: "linear", "shared_pooler" or "pooler"; a pooler starts from the pre-trained one where there is one.
            pooling: "first" reads the first token, "mean" the mean of all.
            exit_layers: None = after every layer, or increasing layer numbers that end with the last layer.

        Raises:
            UnsupportedBackbone: an encoder that offramp cannot cut.
            InvalidInput: an argument out of its range.
        """
        if isinstance(backbone, (str, os.PathLike)):
            load_backbone(_loaded(AutoConfig, backbone).model_type)  # refuse before loading weights
            backbone = _loaded(AutoModel, backbone, dtype=torch.float32)
        source = backbone.base_model if isinstance(backbone, PreTrainedModel) else None
        encoder = copy.deepcopy(source.config if source is not None else backbone)
        load_backbone(encoder.model_type)
        config = MultiExitConfig(
            encoder,
            head,
            pooling,
            exit_layers,
            problem_type=problem_type,
            **_label_arguments(num_labels, id2label),
        )
        model = cls(config)
        if source is not None:
            model._copy_weights(source)
        if source is not backbone and source is not None:
            logger.warning("the head of %s is left out: every exit starts anew", type(backbone).__name__)
        return model

    def _copy_weights(self, source: PreTrainedModel) -> None:
        weights = source.state_dict()
        missing = self.backbone.load_state_dict(weights, strict=False).missing_keys
        if missing:
            raise InvalidInput(f"the encoder given has no weights for {missing[0]} and {len(missing) - 1} more")
        path = self._cut.pooler_path(self.config.backbone)
        if path and f"{path}.weight" in weights:
            for pooler in self.heads.poolers:
                pooler.load_state_dict({name: weights[f"{path}.{name}"] for name in ("weight", "bias")})
        self.to(source.dtype)

    @property
    def layers(self) -> list[int]:
        """The layer number of each exit, 1 = after the first layer."""
        layers: list[int] = self.config.exit_layers
        return layers

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """What goes into the first layer; see `Segments`."""
        return self._cut.embed(inputs)

    def block(self, exit: int, carry: Carry) -> Carry:
        """Run the layers that lead to exit `exit` (0-based); see `Segments`."""
        for number in range(self.layers[exit - 1] if exit else 0, self.layers[exit]):
            carry = self._cut.block(number, carry)
        return carry

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        """What exit `exit` (0-based) says; see `Segments`."""
        logits = self.heads(exit, carry.hidden, carry.mask)
        return ExitOutput(logits, layer=self.layers[exit], problem_type=self.config.problem_type)

    def exits(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Full depth, whatever operating point is set: the logits (B, C) of every exit."""
        carry = self.embed(inputs)
        logits = []
        for number in range(len(self.layers)):
            carry = self.block(number, carry)
            logits.append(self.exit(number, carry).logits)
        return logits

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MultiExitOutput | tuple[Tensor, ...]:
        """Every exit at full depth; or, in eval mode with an operating point set, each sample's own exit.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 = a real token.
            token_type_ids: (B, T), for encoders that have them.
            position_ids: (B, T).
            labels: (B,) or (B, C); adds the depth-weighted loss and runs every layer.
            return_dict: False = a tuple.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        inputs = {name: value for name, value in given.items() if value is not None}
        if self._leaving is not None and not self.training and labels is None:
            out = self._leave_early(inputs, self._leaving)
        else:
            out = self._run_all(inputs, labels)
        return out if self._wants_dict(return_dict) else out.to_tuple()

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)

    def _leave_early(self, inputs: Mapping[str, Tensor], point: OperatingPoint) -> MultiExitOutput:
        answers = run(self, load_policy(point.policy), point.thresholds, inputs)
        return MultiExitOutput(logits=answers.logits, exit_layers=answers.exit_layers)

    def _run_all(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> MultiExitOutput:
        logits = self.exits(inputs)
        loss = None
        if labels is not None:
            exits = ExitOutput(torch.stack(logits), problem_type=self.config.problem_type)
            loss = depth_weighted(exit_losses(exits, labels))
        return MultiExitOutput(loss=loss, logits=logits[-1], logits_by_exit=torch.stack(logits, dim=1))

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The point that is set; None = full depth."""
        return self._leaving

    def set_operating_point(self, point: OperatingPoint | str | None) -> None:
        """Leave early from now on, in eval mode.

        Args:
            point: an operating point, the name of one of `operating_points`, or None = full depth.

        Raises:
            UnknownName: no point of that name.
            InvalidInput: a point for another number of exits.
        """
        if isinstance(point, str):
            if point not in self.operating_points:
                known = ", ".join(self.operating_points) or "none; `offramp calibrate` makes them"
                raise UnknownName(f"no operating point {point!r}; there are: {known}")
            point = self.operating_points[point]
        if point is not None:
            load_policy(point.policy)
            limits(point.thresholds, len(self.layers))
        self._leaving = point

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write weights, configuration, operating points and, where there is none yet, a model card."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if self.operating_points:
            save_points(self.operating_points, folder)
        card = folder / "README.md"
        if not card.exists():
            card.write_text(model_card(self.config, self.operating_points), encoding="utf-8")


def load_folder(folder: str | os.PathLike[str]) -> tuple[MultiExitModel, PreTrainedTokenizerBase]:
    """A model with exits and its tokenizer, from a folder or a hub name; on the GPU if there is one.

    Raises:
        InvalidInput: nothing can be loaded from there, or it is a model without exits.
    """
    config = _loaded(AutoConfig, folder)
    if not isinstance(config, MultiExitConfig):
        raise InvalidInput(f"{folder}: a {config.model_type} model without exits; `offramp train` puts exits on it")
    model: MultiExitModel = _loaded(MultiExitModel, folder).eval()
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model, load_tokenizer(folder)


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or hub name.

    Raises:
        InvalidInput: there is none.
    """
    return _loaded(AutoTokenizer, folder)


def _loaded(kind: Any, folder: str | os.PathLike[str], **options: Any) -> Any:
    """`kind.from_pretrained`, with one line where transformers would fill the screen."""
    try:
        return kind.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        what = {"AutoTokenizer": "tokenizer"}.get(kind.__name__, "model")
        raise InvalidInput(f"{folder}: no {what} can be loaded from there ({str(error).splitlines()[0]})") from None


def _label_arguments(num_labels: int | None, id2label: Mapping[int, str] | None) -> dict[str, Any]:
    if id2label is None:
        if num_labels is not None and num_labels < 1:
            raise InvalidInput(f"num_labels must be at least 1, got {num_labels}")
        return {"num_labels": 2 if num_labels is None else num_labels}
    if num_labels not in (None, len(id2label)):
        raise InvalidInput(f"num_labels is {num_labels}, but id2label names {len(id2label)}")
    if not id2label or sorted(id2label) != list(range(len(id2label))):
        raise InvalidInput(f"id2label must name the outputs 0, 1, ... without a gap, got {sorted(id2label)}")
    return {"id2label": dict(id2label), "label2id": {label: number for number, label in id2label.items()}}


AutoConfig.register(MultiExitConfig.model_type, MultiExitConfig)
AutoModelForSequenceClassification.register(MultiExitConfig, MultiExitModel)
