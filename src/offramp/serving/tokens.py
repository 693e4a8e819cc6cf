"""Texts, pairs and token ids of requests -> rows of tokens, each with a fault of its own. For one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from offramp.data.batching import Cuts, Tokens
from offramp.data.file_tokenizer import FileTokenizer
from offramp.data.rows import Text
from offramp.inference.inputs import encode_texts
from offramp.model.text_folder import load_text_tokenizer
from offramp.serving.request import Item, Options, Refusal, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig


@final
@dataclass(frozen=True)
class RequestTokenizer:
    """The model's tokenizer, for requests.

    Attributes:
        folder: of the model.
        config: of the model.
        tokenizer: the model's.
        max_tokens: of a text, special tokens included.
        auto_truncate: whether texts that are too long are cut where a request does not say.
    """

    folder: str
    config: MultiExitConfig | GraphConfig
    tokenizer: PreTrainedTokenizerBase | FileTokenizer
    max_tokens: int
    auto_truncate: bool

    def copy(self) -> RequestTokenizer:
        """Return one for another thread, which shares nothing that either changes."""
        return replace(self, tokenizer=load_text_tokenizer(self.folder, self.config.backbone))

    def encode(self, items: Sequence[Item], options: Options) -> tuple[dict[int, Tokens], dict[int, Refusal]]:
        """Return the tokens of the items that can be answered and the faults of the others, both by number."""
        limit = min(options.max_tokens or self.max_tokens, self.max_tokens)
        texts = {number: item for number, item in enumerate(items) if not isinstance(item, TokenIds)}
        rows, faults = self._encode_texts(texts, limit, options)
        for number, item in enumerate(items):
            if isinstance(item, TokenIds):
                fault = self._ids_fault(item.ids, limit, options)
                if fault is None:
                    rows[number] = self._ids_row(self._cut(item.ids, limit, options))
                else:
                    faults[number] = fault
        return rows, faults

    def _encode_texts(
        self, texts: dict[int, Text], limit: int, options: Options
    ) -> tuple[dict[int, Tokens], dict[int, Refusal]]:
        """Tokenize texts and pairs; where they must not be cut, those that are too long have a fault."""
        tokenizer, cuts = self._on_side(options.truncation_side), Cuts()
        numbers, vocabulary = list(texts), self.config.vocab_size
        with cuts.counted():
            encoded, wrong = encode_texts(tokenizer, list(texts.values()), limit, vocabulary)
        rows = {numbers[index]: row for index, row in encoded.items()}
        faults = {numbers[index]: _refusal(fault, texts[numbers[index]]) for index, fault in wrong.items()}
        for number in [number for number, row in rows.items() if len(row["input_ids"]) > limit]:
            del rows[number]  # a tokenizer leaves a text whole where not even the special tokens are within the limit
            faults[number] = Refusal("validation", f"the special tokens alone are more than {limit} tokens")
        if cuts.cut and not self._cuts(options):
            for number in [number for number, row in rows.items() if len(row["input_ids"]) >= limit]:
                if self._is_cut(tokenizer, texts[number], limit):
                    del rows[number]
                    faults[number] = _too_long(limit)
        return rows, faults

    def _is_cut(self, tokenizer: PreTrainedTokenizerBase | FileTokenizer, text: Text, limit: int) -> bool:
        cuts = Cuts()
        with cuts.counted():
            encode_texts(tokenizer, [text], limit, self.config.vocab_size)
        return cuts.cut > 0

    def _cuts(self, options: Options) -> bool:
        """Return whether a text that is too long is cut."""
        return self.auto_truncate if options.truncate is None else options.truncate

    def _on_side(self, side: str | None) -> PreTrainedTokenizerBase | FileTokenizer:
        """Return the tokenizer with the side on which it cuts."""
        if side is None or side == self.tokenizer.truncation_side:
            return self.tokenizer
        if isinstance(self.tokenizer, FileTokenizer):
            return replace(self.tokenizer, truncation_side=side)
        import copy

        other = copy.copy(self.tokenizer)
        other.truncation_side = side
        return other

    def _ids_fault(self, ids: Sequence[int], limit: int, options: Options) -> Refusal | None:
        if not ids:
            return Refusal("empty", "the list of token ids is empty")
        if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self.config.vocab_size)
            return Refusal("validation", f"there is no token {wrong}: the model has {self.config.vocab_size}, from 0")
        return _too_long(limit) if len(ids) > limit and not self._cuts(options) else None

    def _cut(self, ids: Sequence[int], limit: int, options: Options) -> Sequence[int]:
        side = options.truncation_side or self.tokenizer.truncation_side
        return ids[-limit:] if side == "left" else ids[:limit]

    def _ids_row(self, ids: Sequence[int]) -> Tokens:
        """Return token ids as a tokenizer returns a text."""
        filled = {"attention_mask": 1, "token_type_ids": 0}
        names = self.tokenizer.model_input_names
        return {"input_ids": list(ids)} | {name: [value] * len(ids) for name, value in filled.items() if name in names}


def _too_long(limit: int) -> Refusal:
    return Refusal("validation", f"a text has more than {limit} tokens, and is not to be truncated")


def _refusal(fault: str, text: Text) -> Refusal:
    """Return the refusal of a text that no tokenizer or model takes."""
    parts = (text,) if isinstance(text, str) else text
    return Refusal("empty" if not all(part.strip() for part in parts) else "validation", fault)
