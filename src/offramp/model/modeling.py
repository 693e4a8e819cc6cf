"""The Hugging Face model: an encoder with an exit after every layer, or after some."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import CONFIG_NAME

from offramp.early_exit.loop import run
from offramp.errors import InvalidInput, one_line
from offramp.model.backbones.base import Backbone
from offramp.model.backbones.registry import load_backbone
from offramp.model.bypass import Bypass, ZeroLinear
from offramp.model.config import MultiExitConfig, resolve_problem_type
from offramp.model.exits import (
    Exits,
    build_heads,
    build_lexical,
    encoder_exits,
    in_front,
    lexical_output,
    refuse_policy,
    refuse_unfitted,
    renew_lexical,
)
from offramp.model.from_backbone import resolve_source
from offramp.model.gate import Gate
from offramp.model.in_memory import WeightsInMemory, refuse_changed_weights, weights_in_memory
from offramp.model.inputs import check_token_ids, inputs_for, refuse_arguments
from offramp.model.layers import build_bypasses, build_token_exit, run_layers
from offramp.model.lexical.config import LexicalExit
from offramp.model.output import MultiExitOutput, full_depth_output
from offramp.model.points import load_points, named_point
from offramp.model.saving import (
    card_text,
    finish_folder,
    index_time,
    points_beside,
    ready_for_upload,
    remove_replaced_weights,
    undo_empty_card,
)
from offramp.model.token_exit.config import TokenExit
from offramp.policies.registry import load_policy
from offramp.types.carry import Carry
from offramp.types.fingerprint import LEXICAL
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import ExitOutput


class MultiExitModel(PreTrainedModel):
    """An encoder with exits.

    `operating_points` holds the points that came with the weights, by name; save_pretrained writes them again.

    Relations: it implements `Segments` for the adaptive loop (`layers`, `lexical`, `embed`, `block`, `exit`). In
    training, and as long as no operating point is set, forward runs every layer and returns every exit; with a point
    set, samples exit early. An exit before the first layer takes no part in training: it is fitted afterwards.

    Example:
        >>> from transformers import BertConfig
        >>> encoder = BertConfig(num_hidden_layers=4, hidden_size=16, num_attention_heads=2)
        >>> model = offramp.MultiExitModel.from_backbone(encoder, num_labels=3)
        >>> model(input_ids=torch.tensor([[2, 7, 3]])).exit_logits.shape
        torch.Size([4, 1, 3])
    """

    config_class = MultiExitConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = ("lexical_exit.scales",)  # not the whole part: its integers would become floats
    accepts_loss_kwargs = False  # losses here are batch means; the Trainer divides by the accumulation steps

    def __init__(self, config: MultiExitConfig) -> None:
        super().__init__(config)
        resolve_problem_type(config)
        self._family = load_backbone(config.backbone.model_type)
        self.backbone = self._family.build(config.backbone)
        self.main_input_name = self._family.input_name
        self._token_exit = build_token_exit(self._encoder_view, config)
        self.heads = build_heads(config, self._family.widths(config.backbone))
        self.bypasses = nn.ModuleList(build_bypasses(self._encoder_view, config))
        self.gate = Gate(self.heads.widths) if config.certainty else None
        self.lexical_exit = build_lexical(config)
        self.objective_modules = nn.ModuleList()  # modules of the objective; empty outside training
        self.operating_points: dict[str, OperatingPoint] = {}
        self._operating_point: OperatingPoint | None = None
        self._card_before: str | None = None  # of the folder that is being saved
        self._index_before: int | None = None  # likewise
        self._loaded_weights: WeightsInMemory | None = None  # those that the operating points were loaded with
        self.post_init()

    @property
    def _encoder_view(self) -> Backbone:
        view: Backbone = self._family(self.backbone)
        return view

    @property
    def _exits(self) -> Exits:
        return Exits(self._encoder_view, self.heads, self.gate, self.config)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Return the names, also those under PEFT, of what data-parallel training leaves alone: it has no int16."""
        names = [] if self.lexical_exit is None else [name for name, _ in self.lexical_exit.named_buffers()]
        return [f"{wrapper}lexical_exit.{name}" for wrapper in ("", "base_model.model.") for name in names]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, configuration and operating points, as `transformers.PreTrainedModel.from_pretrained` does.

        An exit before the first layer whose numbers are not all there, or not for so many outputs, is not fitted.
        """
        with_loading = kwargs.pop("output_loading_info", False)
        model, loading = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        lost = (*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"]))
        if any(key.startswith(LEXICAL) for key in lost):
            renew_lexical(model, LexicalExit(ngrams=model.lexical_exit.ngrams))
        source = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder", "token") if name in kwargs}
        name = pretrained_model_name_or_path  # None with weights from a state dict
        model.operating_points = load_points(name, **source) if name is not None else {}
        model._loaded_weights = weights_in_memory(model) if model.operating_points else None
        return (model, loading) if with_loading else model

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedConfig | nn.Module,
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
        lexical: LexicalExit | None = None,
    ) -> MultiExitModel:
        """Put exits on an encoder.

        A fine-tuned classifier keeps its head as the last exit, if its outputs are the requested ones: no request, the
        same number or the same names. Its answers do not change. The exits of a model with exits go on under the same
        condition, where they have the same form; what starts anew is logged.

        Args:
            backbone: a hub name, a local folder, a configuration (random weights) or a model, whose weights are copied.
                Adapters of PEFT are merged into the copy.
            num_labels: number of outputs C; 1 is a regression. Default 2.
            id2label: names of the classes, in place of `num_labels`.
            problem_type: as in transformers; None = regression for one output, else single label.
            head: "linear", "shared_pooler", "pooler" or "attention"; a pooler starts from the pre-trained one, if
                there is one.
            pooling: "first" reads the first token, "mean" the mean of all.
            bypass: adds features of its own to each exit (see `offramp.model.bypass`).
            certainty: adds a gate that learns whether each exit is right (see `offramp.model.gate`).
            memory: mixes each exit's logits with those of earlier exits (see `MultiExitConfig`).
            token_exit: removes tokens between layers (see `offramp.model.token_exit.selection`).
            exit_layers: None = after every layer, or increasing layer numbers that end with the last layer.
            lexical: adds an exit before the first layer, which `offramp.training.lexical.fit_lexical` fits.

        Raises:
            UnsupportedBackbone: an encoder that offramp cannot run layer by layer, or not with these arguments.
            InvalidInput: an argument out of its range.
        """
        source = resolve_source(backbone, num_labels, id2label, problem_type)
        exits: dict[str, Any] = {"bypass": bypass, "certainty": certainty, "memory": memory, "token_exit": token_exit}
        exits |= {"lexical": lexical and replace(lexical, fitted_rows=0), "own_head": source.own_head}
        config = MultiExitConfig(source.config, head, pooling, exit_layers, **exits, **source.outputs)
        model = cls(config)
        source.copy_weights(model._encoder_view, model)
        return model if source.model is None else model.to(source.model.dtype)

    @property
    def layers(self) -> list[int]:
        """Return the layer number of each exit; 0 = before the first layer, 1 = after it."""
        layers: list[int] = self.config.layers
        return layers

    def lexical(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Return the output of the exit before the first layer; see `Segments`.

        Raises:
            InvalidInput: there is no such exit, it is not fitted, or there are no `input_ids`.
        """
        refuse_unfitted(self.lexical_exit)
        return lexical_output(self, inputs)

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer; see `Segments`."""
        if "input_ids" in inputs:
            check_token_ids(inputs["input_ids"], self.config.vocab_size)
        return self._exits.prepare(self._encoder_view.embed(inputs))

    def block(self, exit: int, carry: Carry, states: list[Tensor] | None = None) -> Carry:
        """Run the layers that lead to exit `exit` (0-based); see `Segments`. `states` is that of `encoder_exits`."""
        number, layers = self._behind_layer(exit), self.config.exit_layers
        carry = run_layers(
            self._encoder_view,
            range(layers[number - 1] if number else 0, layers[number]),
            carry.for_next_block(),
            token_exit=self._token_exit,
            bypass=self.bypasses[number] if self.bypasses else None,
            first_token_only=self.heads.reads_first_token(number),
            states=states,
        )
        return carry if self.config.memory is None else self._exits.remember(number, carry)

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        """Return the output of exit `exit` (0-based); see `Segments`."""
        return self._exits.output(self._behind_layer(exit), carry)

    def _behind_layer(self, exit: int) -> int:
        """Return the number of an exit among those behind layers, 0-based, as heads and bypasses are counted."""
        number = exit - (self.lexical_exit is not None)
        if number < 0:
            raise InvalidInput(f"exit {exit} lies before the first layer: there is no block before it")
        return number

    def all_exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Run full depth, whatever operating point is set, and return every exit's logits (L, B, C).

        Those of an exit before the first layer are zeros until it is fitted.
        """
        lexical = None if self.lexical_exit is None else lexical_output(self, inputs)
        return in_front(lexical, encoder_exits(self, inputs))

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
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> MultiExitOutput | tuple[Any, ...]:
        """Return every exit at full depth; in eval mode with an operating point set, each sample's own exit.

        An exit before the first layer has no loss, and in training no output.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 = a real token.
            token_type_ids: (B, T), for encoders that have them.
            position_ids: (B, T).
            pixel_values: (B, channels, H, W), for encoders of images.
            labels: (B,) or (B, C); adds the depth-weighted loss and runs every layer.
            branch_scales: (L,) shares of the gradient at each exit's layer that come from the exit, the rest coming
                from deeper layers; for training by gradient equilibrium. None = both in full.
            return_dict: False = a tuple.
            inputs_embeds: (B, T, E) rows of the embedding, in place of `input_ids`.
            output_hidden_states: True adds the states after each layer; None = as the configuration says.
            output_attentions: not supported.
            head_mask: not supported.

        Raises:
            InvalidInput: an argument that is not supported, inputs that the encoder does not take, or hidden states
                with an operating point set.
        """
        inputs = inputs_for(
            self.main_input_name,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            pixel_values=pixel_values,
        )
        with_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        refuse_arguments(output_attentions=with_attentions or None, head_mask=head_mask)
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        point = None if self.training or labels is not None else self._operating_point
        if point is not None:
            if with_states:
                raise InvalidInput("hidden states are those of full depth: set_operating_point(None) comes first")
            read = point.layers_read(self.layers)
            answers = run(self, load_policy(point.policy), point.thresholds, inputs, exit_layers=read)
            out = MultiExitOutput(logits=answers.logits, exit_layers=answers.exit_layers)
        else:
            states: list[Tensor] | None = [] if with_states else None
            lexical = None if self.training or self.lexical_exit is None else lexical_output(self, inputs)
            out = full_depth_output(lexical, encoder_exits(self, inputs, branch_scales, states), labels, states)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return out if as_dict else out.to_tuple()

    @property
    def operating_point(self) -> OperatingPoint | None:
        """Return the point that is set; None = full depth."""
        return self._operating_point

    def set_operating_point(self, point: OperatingPoint | str | None) -> None:
        """Let samples exit early from now on, in eval mode.

        Args:
            point: an operating point, the name of one of `operating_points`, or None = full depth.

        Raises:
            UnknownName: no point of that name.
            InvalidInput: a point for other exits, or for one that is not fitted; a name, and the weights have changed
                since it was loaded.
            NotApplicable: its policy has no meaning for the model.
        """
        chosen = named_point(self.operating_points, point) if isinstance(point, str) else point
        if chosen is not None:
            refuse_policy(self, chosen)
            reads_lexical = 0 in chosen.layers_read(self.layers)
            if isinstance(point, str) and chosen.fingerprint is not None:
                refuse_changed_weights(self, self._loaded_weights, point, reads_lexical)
            if reads_lexical:
                refuse_unfitted(self.lexical_exit)
        self._operating_point = chosen

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Write weights and configuration, and make true what lies beside them, before anything is uploaded.

        Operating points of other weights are dropped, an exported graph of other weights is removed, each with a
        warning; the card is written, or lists the points that there are. A model without points keeps those of the
        folder, if they are of its weights. Only the main process writes.
        """
        if not self.operating_points and _writes(is_main_process):
            self.operating_points = points_beside(Path(save_directory))
        self._card_before, self._index_before = card_text(Path(save_directory)), index_time(Path(save_directory))
        try:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        except SafetensorError as error:
            raise InvalidInput(f"{save_directory}: the weights cannot be written ({one_line(error)})") from None
        if _writes(is_main_process) and not kwargs.get("push_to_hub"):
            self._finish(Path(save_directory))

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Finish the folder before transformers uploads it, in `save_pretrained` and in `push_to_hub`."""
        folder = Path(working_dir)
        tags = undo_empty_card(folder, self._card_before)
        self._finish(folder)
        ready_for_upload(folder, tags)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _finish(self, folder: Path) -> None:
        if (folder / CONFIG_NAME).exists():  # nothing was written where `save_directory` is a file
            remove_replaced_weights(folder, self._index_before)
            self.operating_points = finish_folder(folder, self.config, self.operating_points)


def _writes(is_main_process: bool) -> bool:
    """Return whether this process writes what lies beside the weights."""
    distributed = torch.distributed
    first = not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
    return is_main_process and first


AutoConfig.register(MultiExitConfig.model_type, MultiExitConfig)
AutoModelForSequenceClassification.register(MultiExitConfig, MultiExitModel)
AutoModelForImageClassification.register(MultiExitConfig, MultiExitModel)
