"""Tiny encoders, models, token rows and a tokenizer: random weights, nothing downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    CamembertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    ViTConfig,
    XLMRobertaConfig,
)

from offramp.data.batching import collate, encode
from offramp.model.backbones.resnet import CifarResNetConfig
from offramp.model.modeling import MultiExitModel

LAYERS, WIDTH, VOCABULARY, POSITIONS, PIXELS = 4, 16, 40, 64, 8
OTHER_TOKENS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "albert": (AlbertConfig, {"embedding_size": 8, "num_hidden_groups": 2, "inner_group_num": 2}),
    "bert": (BertConfig, {}),
    "camembert": (CamembertConfig, {}),
    "cifar_resnet": (CifarResNetConfig, {"depths": [2, 1, 1], "hidden_sizes": [4, 8, WIDTH]}),
    "deberta": (DebertaConfig, DISENTANGLED),
    "deberta-v2": (
        DebertaV2Config,
        DISENTANGLED | {"position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    "deberta-v2, convolved": (DebertaV2Config, {"conv_kernel_size": 3, "conv_act": "gelu", "type_vocab_size": 2}),
    "distilbert": (DistilBertConfig, {"hidden_dim": 2 * WIDTH}),
    "electra": (ElectraConfig, {"embedding_size": WIDTH}),
    "electra, projected": (ElectraConfig, {"embedding_size": 8}),
    "modernbert": (ModernBertConfig, {"local_attention": 4, "pad_token_id": 0, **dict.fromkeys(OTHER_TOKENS)}),
    "mpnet": (MPNetConfig, {}),
    "roberta": (RobertaConfig, {}),
    "vit": (ViTConfig, {"image_size": PIXELS, "patch_size": PIXELS // 2}),
    "xlm-roberta": (XLMRobertaConfig, {}),
}
LIKE_BERT = ("camembert", "electra", "roberta", "xlm-roberta")
"""Families that take BERT's way through all of our code."""
IMAGES = ("cifar_resnet", "vit")
TEXTS = tuple(family for family in FAMILIES if family not in IMAGES)
CLASSIFIED = tuple(family for family in FAMILIES if family != "cifar_resnet")
"""Families for which transformers has a classifier."""
WHOLE = ("cifar_resnet", "deberta", "deberta-v2, convolved", "modernbert", "vit")
"""Families whose layers do not come in parts."""
ABSOLUTE = ("albert", "bert", "camembert", "distilbert", "electra", "electra, projected", "roberta", "xlm-roberta")
"""Families whose positions are in the embedding alone, so that tokens may leave."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = "the a cat dog sat ran on under mat tree is was good bad fine awful not very and but"
WORDS = tuple(_WORDS.split(" "))


def encoder_config(family: str = "bert", **changes: Any) -> PreTrainedConfig:
    """Return a configuration whose weights are drawn wide, so that exits differ and scores spread."""
    kind, own = FAMILIES[family]
    if kind is CifarResNetConfig:
        return kind(**{"initializer_range": 0.3} | own | changes)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
    }
    if family in IMAGES:
        del sizes["vocab_size"], sizes["max_position_embeddings"]
    return kind(**{kind.attribute_map.get(name, name): value for name, value in (sizes | own | changes).items()})


def tiny_classifier(family: str = "bert", *, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """Return a classifier of transformers with random weights."""
    torch.manual_seed(seed)
    kind = AutoModelForImageClassification if family in IMAGES else AutoModelForSequenceClassification
    return kind.from_config(encoder_config(family, **changes)).eval()


def tiny_model(family: str = "bert", num_labels: int | None = None, *, seed: int = 0, **exits: Any) -> MultiExitModel:
    """Return a model in eval mode; three classes where no labels are named."""
    if num_labels is None and "id2label" not in exits:
        num_labels = 3
    torch.manual_seed(seed)
    model = MultiExitModel.from_backbone(encoder_config(family), num_labels, **exits).eval()
    return fill_lexical(model, seed) if exits.get("lexical") else model


def fill_lexical(model: MultiExitModel, seed: int = 0) -> MultiExitModel:
    """Give a model's lexical exit random numbers, as if rows had fitted it; its logits spread like the other exits'."""
    classifier, generator = model.lexical_exit, torch.Generator().manual_seed(seed)
    for name, low, high in (("table", -100, 100), ("factors", -100, 100), ("bias", -300, 300)):
        values = getattr(classifier, name)
        if values is not None:
            values.random_(low, high, generator=generator)
    classifier.steps.copy_(2 ** torch.randint(1, 4, classifier.steps.shape, generator=generator))
    classifier.squares.random_(64, 500, generator=generator)  # at least 1, in units of 1/64
    classifier.scales.copy_(torch.tensor([2**-7, 2**-7 if classifier.factors is not None else 1, 2**-8]))
    classifier.special_ids.copy_(torch.tensor([3, 2, -1, -1, 0, 4]))  # of `SPECIAL`
    classifier.fitted_rows = torch.tensor([-7, 5, 11])
    classifier.setting = replace(classifier.setting, fitted_rows=3)
    model.config.lexical = classifier.setting.to_data()
    return model


def token_rows(count: int, *, longest: int = 12, seed: int = 0) -> list[dict[str, list[int]]]:
    """Random tokens of 1 to `longest`, unpadded; the last id of the vocabulary is not among them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        ids = torch.randint(len(SPECIAL), VOCABULARY - 1, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * length})
    return rows


def image_rows(count: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random images."""
    generator = torch.Generator().manual_seed(seed)
    return [{"pixel_values": image} for image in torch.randn(count, 3, PIXELS, PIXELS, generator=generator)]


def rows_for(model: MultiExitModel, count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return random rows of the model's kind of input."""
    makes = token_rows if model.main_input_name == "input_ids" else image_rows
    return makes(count, seed=seed)


def padded(model: MultiExitModel, rows: list[dict[str, Any]], extra: int = 0) -> dict[str, Tensor]:
    """One batch on the model's device, with `extra` more columns of padding than it needs; images take none."""
    pad = model.config.pad_token_id
    batch = {name: value.to(model.device) for name, value in collate(rows, pad).items()}
    if "pixel_values" in batch:
        return batch
    return {name: F.pad(value, (0, extra), value=pad if name == "input_ids" else 0) for name, value in batch.items()}


def tiny_tokenizer() -> BertTokenizer:
    vocabulary = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    return BertTokenizer(vocab=vocabulary, model_max_length=32)


def save_folder(folder: Path, model: MultiExitModel) -> Path:
    """A model folder as users have them: weights, configuration, tokenizer."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def balanced(model: MultiExitModel) -> MultiExitModel:
    """Shift the exits' biases so that random texts get different answers."""
    means = model(**padded(model, text_rows(64, seed=7))).exit_logits.mean(dim=1)  # (L, C)
    behind_layers = means[len(means) - len(model.heads.classifiers) :]
    for classifier, mean in zip(model.heads.classifiers, behind_layers, strict=True):
        classifier.bias -= mean
    return model


def texts(count: int, *, seed: int = 0) -> list[str]:
    """Random words of the tokenizer's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[number] for number in torch.randint(len(WORDS), (length,), generator=generator))
        for length in lengths
    ]


def text_rows(count: int, *, seed: int = 0) -> list[dict[str, list[int]]]:
    """Return `texts(count)` as tokens."""
    return encode(tiny_tokenizer(), texts(count, seed=seed), max_length=32)
