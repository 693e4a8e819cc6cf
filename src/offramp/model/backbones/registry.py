"""The table of encoder families."""

from __future__ import annotations

from typing import Any

from offramp.errors import UnsupportedBackbone
from offramp.registry import load

BACKBONES = {  # transformers' model_type -> the class that runs its layers one by one
    "albert": "offramp.model.backbones.bert:Bert",
    "bert": "offramp.model.backbones.bert:Bert",
    "camembert": "offramp.model.backbones.bert:Bert",
    "cifar_resnet": "offramp.model.backbones.resnet:CifarResNetCut",
    "deberta": "offramp.model.backbones.deberta:Deberta",
    "deberta-v2": "offramp.model.backbones.deberta:Deberta",
    "distilbert": "offramp.model.backbones.bert:Bert",
    "electra": "offramp.model.backbones.bert:Bert",
    "modernbert": "offramp.model.backbones.modernbert:ModernBert",
    "mpnet": "offramp.model.backbones.mpnet:MPNet",
    "roberta": "offramp.model.backbones.bert:Bert",
    "vit": "offramp.model.backbones.vit:ViT",
    "xlm-roberta": "offramp.model.backbones.bert:Bert",
}


def load_backbone(model_type: str) -> type[Any]:
    """Return the `Backbone` class for a transformers `model_type`.

    Raises:
        UnsupportedBackbone: offramp does not know this family.
    """
    if model_type not in BACKBONES:
        raise UnsupportedBackbone(
            f"model type {model_type!r} is not supported; supported: {', '.join(sorted(BACKBONES))}. An encoder whose "
            "blocks need only hidden states and a mask is one row in offramp/model/backbones/bert.py and one in"
            " registry.py"
        )
    return load(BACKBONES, model_type)
