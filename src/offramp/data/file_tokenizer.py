"""Read a tokenizer from its file by the `tokenizers` library alone, where that gives what transformers gives.

transformers 5 takes the vocabulary from `tokenizer.json` and builds everything beside it anew, from
`tokenizer_config.json` and the class that is named there. Here the file is read as it is: only for the classes below,
and only where its parts are those that the class would build. transformers, which takes a second to import, loads all
others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import RobertaProcessing, TemplateProcessing

FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
OLD_FILES = ("special_tokens_map.json", "added_tokens.json")
"""Files of earlier versions of transformers, which change tokens; transformers reads them."""
UNLIMITED = 10**30
"""The limit of a tokenizer that names none."""
WORKING = frozenset(
    {
        *("backend", "clean_up_tokenization_spaces", "do_basic_tokenize", "is_local", "local_files_only", "max_length"),
        *("model_input_names", "model_max_length", "name_or_path", "pad_to_multiple_of", "pad_token_type_id"),
        *("padding_side", "split_special_tokens", "stride", "tokenizer_class", "truncation_side"),
        *("truncation_strategy", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
    }
)
"""Keys of CONFIG_FILE that are read here, or that change no token of a text."""
TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "bos_token", "eos_token")


@dataclass(frozen=True)
class _Rebuilt:
    """A class whose tokenizer transformers builds anew: BERT's words, and special tokens around them."""

    inputs: tuple[str, ...]
    special: Mapping[str, str]
    around: Callable[[tuple[str, int], tuple[str, int]], Any]


def _like_bert(cls: tuple[str, int], sep: tuple[str, int]) -> TemplateProcessing:
    first, last = cls[0], sep[0]
    pair = f"{first}:0 $A:0 {last}:0 $B:1 {last}:1"
    return TemplateProcessing(single=f"{first}:0 $A:0 {last}:0", pair=pair, special_tokens=[cls, sep])


def _like_mpnet(cls: tuple[str, int], sep: tuple[str, int]) -> RobertaProcessing:
    return RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)


_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_MPNET = {"unk": "[UNK]", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
_PLAIN = ("input_ids", "attention_mask")
_REBUILT = {
    "BertTokenizer": _Rebuilt(("input_ids", "token_type_ids", "attention_mask"), _BERT, _like_bert),
    "DistilBertTokenizer": _Rebuilt(_PLAIN, _BERT, _like_bert),
    "MPNetTokenizer": _Rebuilt(_PLAIN, _MPNET, _like_mpnet),
}
_AS_FILED = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that read FILE as it is."""


@final
@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer without transformers, with what `offramp.data.batching.encode` reads of one.

    All other names are those of transformers' tokenizer, which is loaded for them.

    Attributes:
        folder: of the model.
        backend_tokenizer: does the work.
        model_max_length: tokens of a text at most.
        truncation_side: "right" or "left".
        model_input_names: names of the inputs that it makes.
        split_special_tokens: a special token that a text has is split like other text.
    """

    folder: str
    backend_tokenizer: Tokenizer
    model_max_length: int
    truncation_side: str
    model_input_names: tuple[str, ...]
    split_special_tokens: bool

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> FileTokenizer | None:
        """Read a local folder's tokenizer; None where transformers has to, or has to say what is wrong."""
        path = Path(folder)
        if any((path / name).exists() for name in OLD_FILES):
            return None
        try:
            config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
            backend = Tokenizer.from_file(str(path / FILE))
            return cls._from(folder, backend, config) if _is_as_built(backend, config) else None
        except Exception:  # of `tokenizers`, which has no error of its own; or of values of other types
            return None

    @classmethod
    def _from(cls, folder: str | os.PathLike[str], backend: Tokenizer, config: Mapping[str, Any]) -> FileTokenizer:
        rebuilt = _REBUILT.get(_class_of(config))
        names = config.get("model_input_names", rebuilt.inputs if rebuilt else _PLAIN)
        cut = backend.truncation
        side = config.get("truncation_side", "right" if cut is None else cut["direction"])
        limit = config.get("model_max_length")
        limit = UNLIMITED if limit is None else int(limit)
        return cls(os.fspath(folder), backend, limit, side, tuple(names), config.get("split_special_tokens", False))

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Return the number of every token."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens are put around a text, or a pair."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    @cached_property
    def _of_transformers(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Tokenize as transformers' tokenizer does."""
        return self._of_transformers(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of transformers' tokenizer."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._of_transformers, name)


def _class_of(config: Mapping[str, Any]) -> str:
    name = str(config.get("tokenizer_class"))
    return name if name in _AS_FILED else name.removesuffix("Fast")


def _is_as_built(backend: Tokenizer, config: Mapping[str, Any]) -> bool:
    """Return whether transformers' class of a configuration would make just this tokenizer."""
    added = backend.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    if not _is_known(config, special):
        return False
    rebuilt = _REBUILT.get(_class_of(config))
    if rebuilt is None:  # more tokens: transformers may repair what Mistral's has
        as_filed = _class_of(config) in _AS_FILED
        return as_filed and backend.post_processor is not None and backend.get_vocab_size() <= 100_000
    own = {f"{key}_token": token for key, token in rebuilt.special.items()}
    own |= {key: config[key] for key in TOKENS if key in config}
    in_vocabulary = all(backend.model.token_to_id(token.content) == number for number, token in added.items())
    if not in_vocabulary or not all(token in special for token in own.values()):
        return False
    cls, sep = ((own[key], special[own[key]]) for key in ("cls_token", "sep_token"))
    normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    model = backend.model
    return (
        isinstance(model, WordPiece)
        and (model.unk_token, model.continuing_subword_prefix) == (own["unk_token"], "##")
        and model.max_input_chars_per_word == WordPiece().max_input_chars_per_word
        and _data(backend.normalizer) == _data(normalizer)
        and _data(backend.pre_tokenizer) == _data(BertPreTokenizer())
        and _data(backend.post_processor) == _data(rebuilt.around(cls, sep))
    )


def _is_known(config: Mapping[str, Any], special: Mapping[str, int]) -> bool:
    """Return whether a configuration says nothing but what is read here."""
    for key, value in config.items():
        if key in TOKENS:
            fits = value in special if isinstance(value, str) else False
        elif key in ("added_tokens_decoder", "extra_special_tokens", "never_split", "additional_special_tokens"):
            fits = not value
        else:
            fits = key in WORKING
        if not fits:
            return False
    return config.get("truncation_side", "right") in ("left", "right")


def _data(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())
