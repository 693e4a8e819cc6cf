"""Answer texts: tokenizer + engine + operating point."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from offramp.data.batching import Cuts, Tokens, token_limit
from offramp.data.file_tokenizer import FileTokenizer
from offramp.data.rows import Text
from offramp.errors import InvalidInput, NotApplicable
from offramp.inference.answers import Answer, to_answers
from offramp.inference.choose_engine import BATCH_ROWS, batch_rows
from offramp.inference.engine import Engine
from offramp.inference.flight import Flight, LeftRows, Runner
from offramp.inference.inputs import encode_texts, in_parts, read_texts
from offramp.inference.load_engine import AUTO, load_with_workers, threads_of, workers_of
from offramp.inference.pipeline import WINDOW, Fault, Pipeline, Steps
from offramp.inference.ranking import check_outputs, ranked, to_relevances
from offramp.inference.runners import rows_by_stage, runner_of
from offramp.inference.stream import LiveSource, Source, SteadySource
from offramp.inference.workers import LEAST_ROWS, WorkerPool
from offramp.model.points import load_point
from offramp.model.text_folder import load_text_config, load_text_tokenizer
from offramp.types.operating_point import DEFAULT, OperatingPoint
from offramp.types.problem_types import REGRESSION

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from offramp.types.outputs import Answers

Writer = Callable[[LeftRows], list[Answer]]
"""Turns rows that have left into answers."""

FEW_TEXTS = 2 * LEAST_ROWS - 1
"""The most that no two workers share."""

MANY_TEXTS = 1600
"""From which on a call shows a progress bar."""


@dataclass(frozen=True)
class Predictor:
    """A tokenizer, an engine and an operating point: answers texts, each at the depth that it needs.

    An answer does not depend on the texts beside it: in float32 but for rounding, in ONNX Runtime's int8 to the last
    bit. In bfloat16 and in OpenVINO it may, where scores lie close to a threshold.

    Relations: a predictor can be pickled and sent to other processes. An exported graph is loaded again there, from
    the same path; a model in torch travels with its weights.

    Attributes:
        engine: runs the model.
        tokenizer: the model's.
        point: policy and thresholds; None = full depth.
        workers: threads that answer batches at the same time; an engine must allow that. The last batches of a call are
            divided among workers that would have none.
        batch_size: of calls that name none.

    Example:
        >>> predictor = offramp.Predictor.load(folder)
        >>> [sorted(answer) for answer in predictor(texts[:1])]
        [['exit_layer', 'label', 'score']]
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase | FileTokenizer
    point: OperatingPoint | None = None
    workers: int = 1
    batch_size: int = BATCH_ROWS

    def __post_init__(self) -> None:
        workers_of(self.engine, self.workers)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        engine: str = AUTO,
        operating_point: OperatingPoint | str | None = DEFAULT,
        threads: int | None = None,
        workers: int | None = None,
        batch_size: int = 1,
        allow_other_engine: bool = False,
    ) -> Predictor:
        """Load a model folder or a hub name.

        Args:
            folder: what `save_pretrained` wrote, with its tokenizer.
            engine: "torch", on the GPU if there is one; "onnx", "onnx-int8" or "openvino", what `offramp export` wrote;
                "auto" chooses one (see `offramp.inference.choose_engine`).
            operating_point: a point, or the name of one saved with the model; None = full depth. A model without a
                point called "default" runs at full depth.
            threads: that compute a batch, at least 1. None = for a graph 1; for torch OMP_NUM_THREADS, else one a core,
                and that of the whole process.
            workers: that answer batches at the same time, at least 1; for torch 1. None = for a graph as many as there
                are cores (or OMP_NUM_THREADS) for their threads.
            batch_size: for "auto": the batch size that will be served; costs measured for it choose the engine and its
                threads.
            allow_other_engine: run a point with a certificate on an engine that the certificate does not hold for.

        Raises:
            UnknownName: no such engine, no operating point of that name.
            InvalidInput: no model with exits can be loaded from there, or the engine cannot run the point, or the
                point's certificate does not hold for it; fewer than one thread or worker.
        """
        tokenizer = load_text_tokenizer(folder, load_text_config(folder).backbone)
        point = operating_point
        if isinstance(point, str):
            point = load_point(folder, point)
        loaded, count = load_with_workers(folder, engine, point, threads, workers, batch_size, allow_other_engine)
        return cls(loaded, tokenizer, point, count, batch_rows(folder, loaded.name, threads_of(loaded), count))

    def __call__(
        self, texts: Iterable[Text | Mapping[str, Any]], batch_size: int | None = None, top_k: int | None = 0
    ) -> list[Answer]:
        """Answer texts and pairs, in the order in which they came.

        Args:
            texts: each a text, a pair of texts, or a dict of "text" and perhaps "text_pair".
            batch_size: how many at once; it does not change the answers (see the class). Texts of similar length go
                together. None = as many as costs that were measured on this machine say are worth it, else 32.
            top_k: how many labels "scores" holds, as in transformers' pipelines; None = all of them, 0 = no "scores".

        Returns:
            One dict a text: {"label", "score", "exit_layer"}; for regression {"value", "exit_layer"} (a list of values
            where there are several outputs); for several labels {"labels", "exit_layer"}, those above 0.5 or
            the point's `label_thresholds`. With `top_k` also "scores", {label: probability}, the most probable first.
            A text that cannot be answered (it is blank, or no Unicode text, or the tokenizer or the engine fails on
            it) has {"error"} alone; one whose logits are not finite has {"error", "exit_layer"}. "exit_layer" is the
            layer after which a text left, 0 = before the first.

        Raises:
            InvalidInput: no list of texts, something that is neither a text nor a pair, or a batch size below 1;
                before anything runs.
            NotApplicable: `top_k` for a regression, which has no probabilities.
        """
        self._check(batch_size, top_k)
        return self._answer_items(list(read_texts(texts)), batch_size, self._writer(top_k))

    def rank(self, query: str, texts: Iterable[str], batch_size: int | None = None) -> list[Answer]:
        """Sort texts by their relevance to a query, the most relevant first.

        The model scores the pairs (query, text). It has two classes, and a score is the second one's probability; or
        one output, and a score is its sigmoid. A point with class offsets (`offramp calibrate --hold-back`) lets the
        clearly irrelevant texts leave earlier than the relevant ones.

        Args:
            query: the first text of all pairs.
            texts: the second texts.
            batch_size: as for a call.

        Returns:
            One dict a text: {"index", "score", "exit_layer"}; "index" is the text's, from 0. Equal scores stay in the
            order of the texts. A text that cannot be answered has {"index", "error"}, and "exit_layer" where one of a
            call has it; such texts come last.

        Raises:
            NotApplicable: the model has neither one output nor two classes.
            InvalidInput: no text, no list of texts, or a batch size below 1; before anything runs.

        Example:
            >>> best, *others = offramp.Predictor.load(reranker).rank("a dog", texts)
            >>> sorted(best)
            ['exit_layer', 'index', 'score']
        """
        self._check(batch_size, 0)
        check_outputs(self.engine.config)
        pairs: list[Any] = [(query, text) for text in read_texts(texts)]  # read again: a pair in a pair is no text
        return ranked(self._answer_items(list(read_texts(pairs)), batch_size, to_relevances))

    def _answer_items(self, items: Sequence[Text], batch_size: int | None, write: Writer) -> list[Answer]:
        """Answer texts in their order, with a progress bar where there are many."""
        if len(items) <= min(batch_size or self.batch_size, FEW_TEXTS):
            return self._answer_few(items, write)
        from tqdm import tqdm  # `offramp predict` answers sources, and starts sooner without it

        many = len(items) > MANY_TEXTS
        answers: list[Answer] = []
        with tqdm(total=len(items), desc="predict", unit="text", disable=None if many else True, leave=False) as bar:
            for some in self._answer_all(SteadySource(items), batch_size, write):
                answers += some
                bar.update(len(some))
        return answers

    def answer(self, inputs: dict[str, Tensor]) -> Answers:
        """Answer a batch of tokens, (B, T) each, in this thread; the answers are on the CPU."""
        return self.engine.answer(inputs, self.point)

    def stream(
        self, texts: Iterable[Text | Mapping[str, Any]], batch_size: int | None = None, top_k: int | None = 0
    ) -> Iterator[Answer]:
        """Answer texts as they come, in order; see `__call__`.

        Up to WINDOW texts are sorted by length together, and texts are read ahead until MOST_TOKENS tokens wait for
        their answers. Where the texts come slower than that, those that have come are answered as soon as the source
        pauses. An error that the source raises, or an item that is no text, comes after the answers to the texts before
        it.

        A source without a length, such as a generator, is read in a thread of its own: what it uses must allow that
        (for sqlite3: `check_same_thread=False`). Which of its texts are answered together depends on when they come.
        """
        items: Iterable[Text | Fault] = read_texts(texts)
        if isinstance(texts, Sized):
            source: Source[Text | Fault] = SteadySource(items)
        else:
            source = LiveSource(items, WINDOW)
        return (answer for answers in self.answer_source(source, batch_size, top_k) for answer in answers)

    @cached_property
    def _runner(self) -> Runner:
        return runner_of(self.engine, self.point)

    @cached_property
    def _pool(self) -> WorkerPool:
        return WorkerPool(self.workers)

    def _check(self, batch_size: int | None, top_k: int | None) -> None:
        if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
            raise InvalidInput(f"batch_size must be a number of at least 1, got {batch_size!r}")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 0):
            raise InvalidInput(f"top_k must be a number of labels, or None for all, got {top_k!r}")
        if top_k != 0 and self.engine.config.problem_type == REGRESSION:
            raise NotApplicable("a regression answers with values; it has no labels and no probabilities")

    def answer_source(
        self, source: Source[Text | Fault], batch_size: int | None, top_k: int | None
    ) -> Iterator[list[Answer]]:
        """Return the answers to the texts of a source in their order, as many at once as there are; see `stream`."""
        self._check(batch_size, top_k)
        return self._answer_all(source, batch_size, self._writer(top_k))

    def _writer(self, top_k: int | None) -> Writer:
        return lambda left: to_answers(left, self.engine.config, self.point, top_k)

    def _answer_few(self, texts: Sequence[Text], write: Writer) -> list[Answer]:
        """Answer texts that make one batch, in this thread; a pipeline would take a good part of their time."""
        config = self.engine.config
        limit = token_limit(self.tokenizer, config.backbone)
        tokens, faults = encode_texts(self.tokenizer, texts, limit, config.vocab_size)

        def fly(rows: Sequence[int]) -> dict[int, Answer]:
            flight: Flight | None = self._runner.start(np.array(rows), [tokens[row] for row in rows])
            answers: dict[int, Answer] = {}
            while flight is not None:
                left, flight = flight.advance()
                if left is not None:
                    answers |= zip(left.rows.tolist(), write(left), strict=True)
            return answers

        parts, failed = in_parts(fly, list(tokens)) if tokens else ([], {})
        answers = {number: Answer(error=fault) for number, fault in (faults | failed).items()}
        for part in parts:
            answers |= part
        return [answers[number] for number in range(len(texts))]

    def _answer_all(
        self, source: Source[Text | Fault], batch_size: int | None, write: Writer
    ) -> Iterator[list[Answer]]:
        config, cuts = self.engine.config, Cuts()
        limit = token_limit(self.tokenizer, config.backbone)

        def encode(texts: Sequence[Text]) -> tuple[Mapping[int, Tokens], Mapping[int, str]]:
            with cuts.counted():
                return encode_texts(self.tokenizer, texts, limit, config.vocab_size)

        stages = self._runner.stages
        if batch_size is None:
            sizes = rows_by_stage(self.engine, self.point, stages, self.batch_size)
        else:
            sizes = [batch_size] * stages
        steps = Steps(encode, self._runner, sizes, write)
        try:
            yield from Pipeline(source, steps, self._pool).run()
        finally:
            cuts.log()
