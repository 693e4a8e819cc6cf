"""Fitting the lexical exit."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertTokenizer,
    BertTokenizer,
    DebertaTokenizer,
    DebertaV2Tokenizer,
    GPT2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

import offramp
from offramp.data.batching import collate, encode
from offramp.data.examples import Examples
from offramp.data.rows import Text
from offramp.model.lexical.classifier import LexicalClassifier
from offramp.model.lexical.config import LexicalExit
from offramp.model.lexical.fitted_rows import have_fitted
from offramp.training.lexical import fit_lexical, set_special_ids
from offramp.training.sparse_linear import bags, solve
from offramp.training.sparse_linear import logits_of as linear_logits
from offramp.training.token_vectors import token_vectors
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.models import encoder_config, texts, tiny_tokenizer

WORDS = ("a", "b", "c", "d")
TOKENIZERS: dict[str, tuple[type[PreTrainedTokenizerBase], tuple[str, ...], str]] = {
    "albert": (AlbertTokenizer, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), "pieces"),
    "bert": (BertTokenizer, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "words"),
    "deberta": (DebertaTokenizer, ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), "bytes"),
    "deberta-v2": (DebertaV2Tokenizer, ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), "pieces"),
    "gpt2": (GPT2Tokenizer, ("<|endoftext|>",), "bytes"),
    "mpnet": (MPNetTokenizer, ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), "words"),
    "roberta": (RobertaTokenizer, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "bytes"),
    "xlm-roberta": (XLMRobertaTokenizer, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "pieces"),
}


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    """A tokenizer with the special tokens of its family and four words."""
    kind, special, unit = TOKENIZERS[family]
    words = {"words": WORDS, "bytes": (*WORDS, *("\u0120" + word for word in WORDS))}.get(
        unit, tuple("\u2581" + word for word in WORDS)
    )
    names = (*special, *words)
    if unit == "pieces":
        return kind(vocab=[(name, -1.0) for name in names])
    vocabulary = {name: number for number, name in enumerate(names)}
    return kind(vocab=vocabulary, merges=[]) if unit == "bytes" else kind(vocab=vocabulary)


class LexicalModel:
    """What the fit reads of a model: an exit before the first layer, and a last exit with the logits of `teacher`."""

    device = torch.device("cpu")

    def __init__(self, classifier: LexicalClassifier, setting: LexicalExit, teacher: Callable[[Tensor], Tensor]):
        self.lexical_exit, self.teacher = classifier, teacher
        self.embedding = torch.nn.Embedding(40, 3)
        torch.nn.init.zeros_(self.embedding.weight)
        self.config = SimpleNamespace(
            lexical=setting.to_data(),
            backbone=encoder_config(),
            num_labels=len(classifier.bias),
            problem_type=classifier.problem_type,
            pad_token_id=0,
        )

    def eval(self) -> LexicalModel:
        return self

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def all_exits(self, inputs: dict[str, Tensor]) -> ExitOutput:
        return ExitOutput(self.teacher(inputs["input_ids"]).unsqueeze(0))


def lexical_model(
    outputs: int, problem_type: str = SINGLE_LABEL, teacher: Callable[[Tensor], Tensor] | None = None, **setting: int
) -> Any:
    """A model whose last exit knows nothing unless it has a teacher."""
    resolved = LexicalExit(**setting).resolved(outputs, 40)
    classifier = LexicalClassifier(resolved, outputs, problem_type)
    return LexicalModel(classifier, resolved, teacher or (lambda ids: torch.zeros(len(ids), outputs)))


def logits_of(classifier: LexicalClassifier, rows: list[Text]) -> Tensor:
    batch = collate(encode(tiny_tokenizer(), rows, 32), 0)
    return classifier(batch["input_ids"], batch["attention_mask"])


def examples_with(labels: Any, problem_type: str, rows: list[Any]) -> Examples:
    return Examples(rows, labels, ("a", "b", "c"), problem_type)


def order_examples(count: int = 200) -> Examples:
    """Texts whose class is the order of two words, which single words do not show."""
    rows = texts(count)
    labels = [number % 2 for number in range(count)]
    rows = [f"{row} {'cat dog' if label else 'dog cat'}" for row, label in zip(rows, labels, strict=True)]
    return Examples(rows, labels, ("no", "yes"), SINGLE_LABEL)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_separators_alone_begin_the_second_text(family: str) -> None:
    tokenizer = tokenizer_of(family)
    classifier = LexicalClassifier(LexicalExit(buckets=10_007, rank=2), 2, SINGLE_LABEL)
    set_special_ids(classifier, tokenizer)

    def buckets(text: Text) -> list[int]:
        ids = torch.tensor([encode(tokenizer, [text], 30)[0]["input_ids"]])
        hashed, weights = classifier.features(ids)
        return hashed[weights > 0].tolist()

    single, pair, swapped = buckets("a b"), buckets(("a b", "c")), buckets(("c", "a b"))
    closed = family != "gpt2"  # it puts nothing around a text or between two
    assert len(single) == 2 + 3 * closed + 2 * (not closed)  # words and pairs of them, with both ends or the first
    assert len(pair) == 3 + 5 * closed + 3 * (not closed)
    if closed:
        assert set(single) <= set(pair)
        assert not set(single) & set(swapped)


def test_ngrams_learn_the_order_of_words() -> None:
    examples = order_examples()
    for ngrams, least, most in ((2, 0.99, 1.0), (1, 0.3, 0.7)):
        model = lexical_model(2, ngrams=ngrams)
        fit_lexical(model, tiny_tokenizer(), examples)
        other = order_examples(300)
        rows, labels = other.texts[200:], torch.tensor(other.labels[200:])
        right = (logits_of(model.lexical_exit, rows).argmax(dim=1) == labels).float().mean()
        assert least <= right <= most


def test_a_second_fit_gives_the_same_buffers_and_the_config_knows_their_sizes() -> None:
    examples = order_examples()
    models = [lexical_model(2), lexical_model(2)]
    fit_lexical(models[1], tiny_tokenizer(), Examples(texts(30), [0, 1] * 15, ("no", "yes"), SINGLE_LABEL))
    for model in models:  # one anew, one for the second time
        fit_lexical(model, tiny_tokenizer(), examples)
    first, second = (dict(model.lexical_exit.named_buffers()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    loaded = LexicalClassifier(LexicalExit(**models[0].config.lexical), 2, SINGLE_LABEL)
    loaded.load_state_dict(models[0].lexical_exit.state_dict())
    assert torch.equal(logits_of(loaded, examples.texts), logits_of(models[0].lexical_exit, examples.texts))
    ids = [row["input_ids"] for row in encode(tiny_tokenizer(), [*examples.texts[:3], "the unseen cat"], 32)]
    assert have_fitted(loaded.fitted_rows, ids).tolist() == [True, True, True, False]


def test_several_labels_are_learned_one_by_one() -> None:
    rows = texts(300)
    labels = [[float("cat" in row), float("dog" in row), float("good" in row)] for row in rows]
    model = lexical_model(3, MULTI_LABEL)
    fit_lexical(model, tiny_tokenizer(), examples_with(labels, MULTI_LABEL, rows))
    assert (((logits_of(model.lexical_exit, rows) > 0) == torch.tensor(labels).bool()).float().mean() > 0.95).item()


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_regression_starts_at_the_mean_and_follows_the_words(outputs: int) -> None:
    rows = texts(300)
    values = [1000.0 + 10 * row.split().count("cat") for row in rows]
    labels = values if outputs == 1 else [[value, -value] for value in values]
    model = lexical_model(outputs, REGRESSION)
    fit_lexical(model, tiny_tokenizer(), examples_with(labels, REGRESSION, rows))
    expected = torch.tensor(labels).view(300, outputs)
    logits = logits_of(model.lexical_exit, rows)
    assert (logits - expected).square().mean() < 0.5 * (expected - expected.mean(dim=0)).square().mean()
    assert model.lexical_exit.certainty(logits).eq(0).all()


def test_more_outputs_than_columns_keep_the_answers() -> None:
    rows, labels = [f"{a} {b}" for a in WORDS for b in texts(20)], [number // 20 for number in range(80)]
    examples = Examples(rows, labels, tuple(map(str, range(9))), SINGLE_LABEL)
    whole, narrow = lexical_model(9), lexical_model(9, rank=6)
    for model in (whole, narrow):
        fit_lexical(model, tiny_tokenizer(), examples)
    torch.testing.assert_close(
        logits_of(narrow.lexical_exit, rows), logits_of(whole.lexical_exit, rows), rtol=0.05, atol=0.1
    )


def test_few_rows_of_few_kinds_are_fitted() -> None:
    for rows, labels in (["cat"], [1]), (["cat", ""], [1, 0]), (["", ""], [0, 0]):
        model = lexical_model(3)
        fit_lexical(model, tiny_tokenizer(), Examples(rows, labels, ("a", "b", "c"), SINGLE_LABEL))
        assert logits_of(model.lexical_exit, ["cat", "", "dog"]).isfinite().all()


def test_the_last_exit_teaches_where_that_helps() -> None:
    rows, generator = texts(240), torch.Generator().manual_seed(0)
    right = torch.tensor(["cat" in row or "dog" in row for row in rows]).long()
    wrong = torch.rand(240, generator=generator) < 0.3
    labels = torch.where(wrong, 1 - right, right).tolist()  # of texts that the last exit knows better
    cat, dog = (tiny_tokenizer().convert_tokens_to_ids(word) for word in ("cat", "dog"))

    def teacher(ids: Tensor) -> Tensor:
        yes = ((ids == cat) | (ids == dog)).any(dim=1).float()
        return torch.stack([-4 * (2 * yes - 1), 4 * (2 * yes - 1)], dim=1)

    def wrong_teacher(ids: Tensor) -> Tensor:
        return -teacher(ids)

    losses = []
    for kind in (None, teacher, wrong_teacher):
        model = lexical_model(2, teacher=kind)
        fit_lexical(model, tiny_tokenizer(), examples_with(labels, SINGLE_LABEL, rows))
        losses.append(float(torch.nn.functional.cross_entropy(logits_of(model.lexical_exit, rows), right)))
    assert losses[1] < 0.9 * losses[0]
    assert losses[2] < 0.67  # log 2 is that of an even answer


def test_logits_that_are_not_finite_teach_nothing() -> None:
    model = lexical_model(2, teacher=lambda ids: torch.full((len(ids), 2), torch.nan))
    with pytest.raises(offramp.InvalidInput, match="the last exit's logits are not finite"):
        fit_lexical(model, tiny_tokenizer(), order_examples(10))


@pytest.mark.parametrize("paired", [False, True])
def test_token_vectors_are_features_that_fold_into_the_tokens_weights(paired: bool) -> None:
    classifier = LexicalClassifier(LexicalExit(buckets=997, rank=2), 2, SINGLE_LABEL)
    set_special_ids(classifier, tiny_tokenizer())
    text = ("cat dog cat", "dog") if paired else "cat dog cat"
    ids = encode(tiny_tokenizer(), [text], 30)[0]["input_ids"]
    buckets, weights = classifier.features(torch.tensor([ids]))
    used, columns = torch.unique(buckets[weights > 0], return_inverse=True)
    rows = bags(columns, torch.full((len(columns),), 0.5), torch.tensor([len(columns)]), len(used))
    embedding = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    vectors = token_vectors(classifier, embedding, used, torch.unique(torch.tensor(ids)), paired)
    features = vectors.features(rows)
    cat, dog = embedding[tiny_tokenizer().convert_tokens_to_ids(["cat", "dog"])]
    away = (cat - dog) / 2  # of each from their mean
    first, second = 0.5 * (2 * away - away), 0.5 * -away
    expected = torch.cat([first, second] if paired else [first]) * 0.5 / away.norm()
    torch.testing.assert_close(features[0], expected)
    parameters = torch.randn(len(used) + len(expected) + 1, 2, generator=torch.Generator().manual_seed(1))
    folded, bias = vectors.folded(parameters, len(used))
    torch.testing.assert_close(rows.times(folded) + bias, linear_logits(parameters, rows, features))


def test_a_model_without_lexical_exit_is_refused() -> None:
    model: Any = SimpleNamespace(lexical_exit=None)
    with pytest.raises(offramp.InvalidInput, match="the model has no lexical exit"):
        fit_lexical(model, tiny_tokenizer(), order_examples(10))


@pytest.mark.parametrize(
    ("model", "labels", "problem_type", "line"),
    [
        ((3, SINGLE_LABEL), [0, 3], SINGLE_LABEL, "labels must be class numbers from 0 to 2, got 0 to 3"),
        ((3, SINGLE_LABEL), [[1.0, 0.0, 1.0]] * 2, MULTI_LABEL, "the labels are of multi_label_"),
        ((3, MULTI_LABEL), [0, 1], SINGLE_LABEL, "the labels are of single_label_"),
        ((3, MULTI_LABEL), [[1.0, 0.0]] * 2, MULTI_LABEL, r"labels for 2 samples must be \(2, 3\), got \(2, 2\)"),
        ((1, REGRESSION), [0.5, float("nan")], REGRESSION, "labels of a regression must be finite numbers"),
    ],
)
def test_labels_that_do_not_fit_the_model_are_refused(
    model: tuple[int, str], labels: Any, problem_type: str, line: str
) -> None:
    with pytest.raises(offramp.InvalidInput, match=line):
        fit_lexical(lexical_model(*model), tiny_tokenizer(), examples_with(labels, problem_type, ["cat", "dog"]))


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_the_solver_ends_where_the_slopes_of_autograd_are_flat(problem_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(30, 5, generator=generator) * (torch.rand(30, 5, generator=generator) < 0.5)
    entries = dense.nonzero()
    rows = bags(entries[:, 1], dense[dense != 0], entries[:, 0].bincount(minlength=30), 5)
    assert torch.equal(rows.times(torch.eye(5)), dense)
    assert torch.equal(rows.transposed().times(torch.eye(30)), dense.T)
    chosen = torch.tensor([4, 4, 0, 17])
    assert torch.equal(rows.select(chosen).times(torch.eye(5)), dense[chosen])
    targets = torch.rand(30, 3, generator=generator).softmax(dim=1)
    further = torch.randn(30, 2, generator=generator)
    parameters = solve(rows, further, targets, problem_type, 0.1)
    weights, bias = parameters[:-1].clone().requires_grad_(), parameters[-1].clone().requires_grad_()
    logits = torch.cat([dense, further], dim=1) @ weights + bias
    losses = {
        SINGLE_LABEL: -(targets * logits.log_softmax(dim=1)).sum(dim=1),
        MULTI_LABEL: torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1),
        REGRESSION: (logits - targets).square().sum(dim=1) / 2,
    }
    (losses[problem_type].mean() + 0.05 * weights.square().sum()).backward()
    assert weights.grad is not None
    assert bias.grad is not None
    assert max(weights.grad.abs().max(), bias.grad.abs().max()) < 1e-3
