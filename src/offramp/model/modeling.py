"""A Hugging Face model with an exit after every layer (or after some)."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from offramp.early_exit.loop import run
from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.model.backbones.base import Backbone, OwnHead
from offramp.model.backbones.registry import load_backbone
from offramp.model.bypass import Bypass, BypassBranch, ZeroLinear
from offramp.model.card import model_card, save_points
from offramp.model.config import MultiExitConfig
from offramp.model.gate import Gate
from offramp.model.heads import PLAIN, Heads, pooling_weights_of
from offramp.model.hub import is_classifier, load_encoder, load_points, named_point
from offramp.model.losses import depth_weighted, exit_losses
from offramp.model.token_exit.class_attention import CLASS_ATTENTION
from offramp.model.token_exit.config import TokenExit
from offramp.model.token_exit.selection import apply_token_exit
from offramp.policies.decision import thresholds_per_exit
from offramp.policies.registry import load_policy
from offramp.types.carry import Carry
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL

logger = logging.get_logger(__name__)


@dataclass
class MultiExitOutput(ModelOutput):
    """What a forward pass gives; attributes or a tuple, as always in transformers.

    Attributes:
        loss: scalar, depth-weighted over the exits, where labels were given.
        logits: (B, C): the last exit's, or with an operating point set those of the exit at which each sample left.
        logits_by_exit: (B, L, C) at full depth.
        certainty_by_exit: (B, L) at full depth, where the model has a gate.
        exit_layers: (B,) layer numbers, where an operating point was set.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_by_exit: Tensor | None = None
    certainty_by_exit: Tensor | None = None
    exit_layers: Tensor | None = None

    @property
    def exit_logits(self) -> Tensor | None:
        """The logits of every exit, (L, B, C): a view of `logits_by_exit`."""
        return None if self.logits_by_exit is None else self.logits_by_exit.transpose(0, 1)

    @property
    def exit_certainty(self) -> Tensor | None:
        """The certainty of every exit, (L, B): a view of `certainty_by_exit`."""
        return None if self.certainty_by_exit is None else self.certainty_by_exit.transpose(0, 1)


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
        self.main_input_name = self._family.input_name
        self._token_exit = self._build_token_exit(config)
        every = self._family.widths(config.backbone)
        widths = [every[layer - 1] for layer in config.exit_layers]
        self.heads = Heads(config.head, config.pooling, widths, config.num_labels, config.exit_dropout, config.own_head)
        self.bypasses = nn.ModuleList(self._build_bypasses(config))
        self.gate = Gate(_one_width(self.heads.widths)) if config.certainty else None
        self.objective_modules = nn.ModuleList()  # what an objective trains along; empty but for the time of training
        self.operating_points: dict[str, OperatingPoint] = {}
        self._operating_point: OperatingPoint | None = None
        self.post_init()

    @property
    def _encoder_view(self) -> Backbone:
        cut: Backbone = self._family(self.backbone)
        return cut

    def _build_token_exit(self, config: MultiExitConfig) -> TokenExit | None:
        if config.token_exit is None:
            return None
        if not self._encoder_view.in_parts or not self._encoder_view.absolute_positions:
            lack = (
                "layers that come in parts"
                if not self._encoder_view.in_parts
                else "positions that are in the embedding alone"
            )
            raise UnsupportedBackbone(f"token exit needs {lack}, which {config.backbone.model_type} has not")
        self.backbone.set_attn_implementation(CLASS_ATTENTION)
        return TokenExit(**config.token_exit)

    def _build_bypasses(self, config: MultiExitConfig) -> list[BypassBranch]:
        if config.bypass is None:
            return []
        if not self._encoder_view.in_parts:
            raise UnsupportedBackbone(
                f"a bypass needs the parts of a layer, and those of this {config.backbone.model_type} cannot be had"
            )
        bypass, width = Bypass(**config.bypass), config.backbone.hidden_size
        norms: list[Any] = [self._encoder_view.norm(layer - 1) for layer in config.exit_layers]
        return [BypassBranch(bypass, width, norm.eps) for norm in norms]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Weights, configuration and operating points; see `transformers.PreTrainedModel.from_pretrained`."""
        result = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result  # output_loading_info=True gives a pair
        where = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder", "token") if name in kwargs}
        name = pretrained_model_name_or_path  # None where the weights were given as a state dict
        model.operating_points = load_points(name, **where) if name is not None else {}
        return result

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
        bypass: Bypass | None = None,
        certainty: bool = False,
        memory: float | None = None,
        token_exit: TokenExit | None = None,
        exit_layers: Sequence[int] | None = None,
    ) -> MultiExitModel:
        """Put exits on an encoder.

        A fine-tuned classifier keeps its head as the last exit, if that answers the question asked: nothing said about
        the outputs, or the same number of them, or the same names. Its answers stay what they were.

        Args:
            backbone: a hub name or a local folder, a configuration (random weights) or a model, whose weights
                are copied.
            num_labels: how many outputs C; 1 is a regression. Default 2.
            id2label: names of the classes, in place of `num_labels`.
            problem_type: as in transformers; None = regression for one output, else single label.
            head: "linear", "shared_pooler", "pooler" or "attention"; a pooler starts from the pre-trained one where
                there is one.
            pooling: "first" reads the first token, "mean" the mean of all.
            bypass: gives each exit features of its own (see `offramp.model.bypass`).
            certainty: adds a gate that learns how sure each exit is (see `offramp.model.gate`).
            memory: lets exits add to what earlier ones said (see `MultiExitConfig`).
            token_exit: lets tokens leave on the way (see `offramp.model.token_exit.selection`).
            exit_layers: None = after every layer, or increasing layer numbers that end with the last layer.

        Raises:
            UnsupportedBackbone: an encoder that offramp cannot cut, or not as an argument asks.
            InvalidInput: an argument out of its range.
        """
        if isinstance(backbone, (str, os.PathLike)):
            backbone = load_encoder(backbone)
        source = backbone if isinstance(backbone, PreTrainedModel) else None
        encoder = copy.deepcopy(source.base_model.config if source is not None else backbone)
        own = _own_head(source, num_labels, id2label, problem_type)
        labels = _label_arguments(num_labels, id2label)
        if own is not None and source is not None:
            labels = {"id2label": source.config.id2label, "label2id": source.config.label2id}
            problem_type = source.config.problem_type
        config = MultiExitConfig(
            encoder,
            head,
            pooling,
            exit_layers,
            bypass=bypass,
            certainty=certainty,
            memory=memory,
            token_exit=token_exit,
            own_head=(own.activation or PLAIN) if own else None,
            problem_type=problem_type,
            **labels,
        )
        model = cls(config)
        if source is not None:
            model._copy_weights(source.base_model)
            if own is not None:
                model._copy_head(source, own)
            elif source.base_model is not source:
                logger.warning("the head of %s is left out: every exit starts anew", type(source).__name__)
        return model

    def _copy_weights(self, source: PreTrainedModel) -> None:
        weights = source.state_dict()
        missing = self.backbone.load_state_dict(weights, strict=False).missing_keys
        if missing:
            raise InvalidInput(f"the encoder given has no weights for {missing[0]} and {len(missing) - 1} more")
        path = self._encoder_view.pooler_path(self.config.backbone)
        if path and f"{path}.weight" in weights:
            for pooler in self.heads.poolers:
                pooler.load_state_dict({name: weights[f"{path}.{name}"] for name in ("weight", "bias")})
        for layer, branch in zip(self.layers, self.bypasses, strict=False):
            branch.get_submodule("norm").load_state_dict(self._encoder_view.norm(layer - 1).state_dict())
        self.to(source.dtype)

    def _copy_head(self, source: PreTrainedModel, own: OwnHead) -> None:
        """The classifier's head becomes the last exit's; early exits with poolers start from its pooler."""
        self.heads.classifiers[-1].load_state_dict(source.get_submodule(own.out).state_dict())
        if own.pooler is not None:
            for pooler in self.heads.poolers:
                pooler.load_state_dict(source.get_submodule(own.pooler).state_dict())

    @property
    def layers(self) -> list[int]:
        """The layer number of each exit, 1 = after the first layer."""
        layers: list[int] = self.config.exit_layers
        return layers

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """What goes into the first layer; see `Segments`."""
        carry = self._encoder_view.embed(inputs)
        if self.heads.pooling != "mean" or carry.mask is None:
            return carry
        return replace(carry, pooling_weights=pooling_weights_of(carry.mask))

    def block(self, exit: int, carry: Carry) -> Carry:
        """Run the layers that lead to exit `exit` (0-based); see `Segments`."""
        carry = replace(carry, exit_input=None)
        *between, last = range(self.layers[exit - 1] if exit else 0, self.layers[exit])
        for number in between:
            carry = self._layer(number, carry)
        carry = self._layer(last, carry, exit)
        return carry if self.config.memory is None else self._update_exit_memory(exit, carry)

    def _layer(self, number: int, carry: Carry, exit: int | None = None) -> Carry:
        """Layer `number` (0-based); `exit` (0-based) stands behind it."""
        bypassed = exit is not None and bool(self.bypasses)
        if not bypassed and not self._selects(number):
            return self._encoder_view.block(number, carry)
        parts = partial(self._in_parts, number, exit if bypassed else None)
        if self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.modules()):
            recomputed: Carry = checkpoint(parts, carry, use_reentrant=False)
            return recomputed
        return parts(carry)

    def _selects(self, number: int) -> bool:
        """Whether token exit wants to know of layer `number` (0-based)."""
        return self._token_exit is not None and self._token_exit.reads(number + 1)

    def _in_parts(self, number: int, exit: int | None, carry: Carry) -> Carry:
        """A layer half by half: token exit between the halves, the bypass of exit `exit` around it."""
        cut, given, chosen = self._encoder_view, carry.hidden, None
        attended, told = cut.attend(number, carry)
        carry = replace(carry, hidden=attended)
        if self._token_exit is not None and self._selects(number):
            carry, chosen = apply_token_exit(self._token_exit, number + 1, carry, told, self.backbone.config)
        summed = cut.feed_forward(number, carry.hidden)
        if exit is None:
            return replace(carry, hidden=cut.norm(number)(summed))
        rows = slice(0, 1) if self.heads.reads_first_token(exit) else slice(None)
        if self.config.bypass["placement"] == "ffn":
            given = carry.hidden
        elif chosen is not None and rows.stop is None:
            given = chosen(given)
        read = self.bypasses[exit](given[:, rows], summed[:, rows])
        return replace(carry, hidden=cut.norm(number)(summed), exit_input=read)

    def _update_exit_memory(self, exit: int, carry: Carry) -> Carry:
        """M_1 = C_1, M_l = (1 - lambda) M_{l-1} + lambda C_l (MPEE, section 3.2, eq. 9 and 10)."""
        said = self.heads.classify(exit, self._read(exit, carry))  # (B, C)
        before = said if carry.memory_logits is None else carry.memory_logits
        return replace(carry, memory_logits=torch.lerp(before, said, self.config.memory))

    def _read(self, exit: int, carry: Carry) -> Tensor:
        """What the last map of exit `exit` (0-based) reads, (B, W)."""
        return self.heads.read(exit, self._seen(carry), carry.mask, carry.pooling_weights)

    def _seen(self, carry: Carry) -> Tensor:
        """What the exit behind the last block sees, (B, T, D)."""
        return self._encoder_view.read(carry.hidden) if carry.exit_input is None else carry.exit_input

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        """What exit `exit` (0-based) says; see `Segments`."""
        about: dict[str, Any] = {"layer": self.layers[exit], "problem_type": self.config.problem_type}
        if carry.memory_logits is not None and self.gate is None:
            return ExitOutput(carry.memory_logits, **about)
        read = self._read(exit, carry)  # (B, W)
        logits = self.heads.classify(exit, read) if carry.memory_logits is None else carry.memory_logits
        return ExitOutput(logits, None if self.gate is None else self.gate(read), **about)

    def all_exits(self, inputs: Mapping[str, Tensor], branch_scales: Sequence[float] | None = None) -> ExitOutput:
        """Full depth, whatever operating point is set: what every exit says, logits (L, B, C).

        Args:
            inputs: see `forward`.
            branch_scales: see `forward`.
        """
        carry = self.embed(inputs)
        said = []
        for number in range(len(self.layers)):
            carry = branch = self.block(number, carry)
            if branch_scales is not None:
                share = branch_scales[number]
                branch, carry = _scaled(carry, share), _scaled(carry, 1 - share)
            said.append(self.exit(number, branch))
        logits = torch.stack([out.logits for out in said])
        certainty = [out.certainty for out in said if out.certainty is not None]
        return ExitOutput(logits, torch.stack(certainty) if certainty else None, problem_type=self.config.problem_type)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        branch_scales: Sequence[float] | None = None,
        return_dict: bool | None = None,
    ) -> MultiExitOutput | tuple[Tensor, ...]:
        """Every exit at full depth; or, in eval mode with an operating point set, each sample's own exit.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 = a real token.
            token_type_ids: (B, T), for encoders that have them.
            position_ids: (B, T).
            pixel_values: (B, channels, H, W), for encoders of images.
            labels: (B,) or (B, C); adds the depth-weighted loss and runs every layer.
            branch_scales: (L,) shares of the gradient at each exit's layer that come from the exit, the rest coming
                from deeper layers; for training by gradient equilibrium. None = both whole.
            return_dict: False = a tuple.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "pixel_values": pixel_values,
        }
        inputs = {name: value for name, value in given.items() if value is not None}
        if self._operating_point is not None and not self.training and labels is None:
            out = self._leave_early(inputs, self._operating_point)
        else:
            out = self._run_all(inputs, labels, branch_scales)
        return out if self._wants_dict(return_dict) else out.to_tuple()

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)

    def _leave_early(self, inputs: Mapping[str, Tensor], point: OperatingPoint) -> MultiExitOutput:
        answers = run(self, load_policy(point.policy), point.thresholds, inputs)
        return MultiExitOutput(logits=answers.logits, exit_layers=answers.exit_layers)

    def _run_all(
        self, inputs: Mapping[str, Tensor], labels: Tensor | None, branch_scales: Sequence[float] | None
    ) -> MultiExitOutput:
        exits = self.all_exits(inputs, branch_scales)
        return MultiExitOutput(
            loss=None if labels is None else depth_weighted(exit_losses(exits, labels)),
            logits=exits.logits[-1],
            logits_by_exit=exits.logits.transpose(0, 1).contiguous(),
            certainty_by_exit=None if exits.certainty is None else exits.certainty.transpose(0, 1).contiguous(),
        )

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The point that is set; None = full depth."""
        return self._operating_point

    def set_operating_point(self, point: OperatingPoint | str | None) -> None:
        """Leave early from now on, in eval mode.

        Args:
            point: an operating point, the name of one of `operating_points`, or None = full depth.

        Raises:
            UnknownName: no point of that name.
            InvalidInput: a point for another number of exits.
        """
        if isinstance(point, str):
            point = named_point(self.operating_points, point)
        if point is not None:
            load_policy(point.policy)
            thresholds_per_exit(point.thresholds, len(self.layers))
        self._operating_point = point

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write weights, configuration, operating points and, where there is none yet, a model card."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if self.operating_points:
            save_points(self.operating_points, folder)
        card = folder / "README.md"
        if not card.exists():
            card.write_text(model_card(self.config, self.operating_points), encoding="utf-8")


def _own_head(
    source: PreTrainedModel | None, num_labels: int | None, id2label: Mapping[int, str] | None, problem_type: str | None
) -> OwnHead | None:
    """The head of a fine-tuned classifier, if it answers the question that is asked."""
    if source is None or not is_classifier([type(source).__name__]):
        return None
    config = source.config
    same = num_labels in (None, config.num_labels) and id2label in (None, config.id2label)
    if not same or problem_type not in (None, config.problem_type):
        return None
    own: OwnHead | None = load_backbone(config.model_type).own_head(config)
    return own


def _one_width(widths: Sequence[int]) -> int:
    if len(set(widths)) > 1:
        raise InvalidInput(f"a gate shared by all exits needs exits of one width, got {sorted(set(widths))}")
    return widths[0]


def _scaled(carry: Carry, share: float) -> Carry:
    """The same values; gradients are `share` of what they were."""

    def scaled(states: Tensor) -> Tensor:
        return states * share + (states * (1 - share)).detach()

    also = {"exit_input": carry.exit_input, "token_importance": carry.token_importance}
    return replace(
        carry,
        hidden=scaled(carry.hidden),
        **{name: scaled(states) for name, states in also.items() if states is not None},
    )


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
AutoModelForImageClassification.register(MultiExitConfig, MultiExitModel)
