from __future__ import annotations

from itertools import combinations, product
from statistics import mean

import pytest
import torch
import torch.nn.functional as F

from offramp.errors import NotApplicable
from offramp.model.token_exit.config import TokenExit
from offramp.model.token_similarity import compare_directions, direction_sums, token_similarity
from support.models import tiny_model, tiny_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran", "good", "the tree is not bad but the dog was awful"]


def test_a_similarity_is_the_mean_cosine_of_all_pairs_of_tokens_that_count() -> None:
    """Text 0 has tokens at 0, 60 and 90 degrees, and padding; text 1 two at 0 and 180, of other lengths."""
    root = 3**0.5
    first = torch.tensor([[1.0, 0.0], [1.0, root], [0.0, 5.0], [7.0, 7.0]])
    second = torch.tensor([[2.0, 0.0], [-3.0, 0.0], [9.0, 9.0], [9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    sums = direction_sums(torch.stack((first, second)), mask)[None]
    similarity = compare_directions(sums, mask.sum(dim=-1))
    cosines = [0.5, 0.0, root / 2]  # of 60, 90 and 30 degrees
    assert similarity.within.tolist() == [[pytest.approx(mean(cosines)), pytest.approx(-1.0)]]
    assert similarity.between.tolist() == [
        pytest.approx(0.0)
    ]  # every cosine with one token is less that with the other


def test_the_layers_are_those_of_the_encoder_and_neither_padding_nor_special_tokens_count() -> None:
    model, tokenizer = tiny_model(lexical=None, exit_layers=[2, 4]), tiny_tokenizer()
    similarity = token_similarity(model, tokenizer, TEXTS)
    states = []  # of each text alone: (K + 1, T - 2, D), from transformers' own encoder
    for text in TEXTS:
        batch = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            hidden = model.backbone(**batch, output_hidden_states=True).hidden_states
        states.append(F.normalize(torch.stack(hidden)[:, 0, 1:-1].double(), dim=-1))
    texts = [text for text in states if text.shape[1] > 1]
    assert similarity.within.shape == (5, len(texts)) == (5, 3)
    for layer in range(5):
        within = [
            mean((text[layer, i] @ text[layer, j]).item() for i, j in combinations(range(text.shape[1]), 2))
            for text in texts
        ]
        assert sorted(similarity.within[layer].tolist()) == pytest.approx(sorted(within), abs=1e-5)
        between = mean(
            (one @ two).item()
            for first, second in combinations(texts, 2)
            for one, two in product(first[layer], second[layer])
        )
        assert similarity.between[layer].item() == pytest.approx(between, abs=1e-5)


def test_models_without_tokens_at_every_layer_are_refused() -> None:
    with pytest.raises(NotApplicable, match="reads images"):
        token_similarity(tiny_model("vit"), tiny_tokenizer(), TEXTS)
    with pytest.raises(NotApplicable, match="has token exit"):
        token_similarity(tiny_model(token_exit=TokenExit(keep_ratio={2: 0.5})), tiny_tokenizer(), TEXTS)
