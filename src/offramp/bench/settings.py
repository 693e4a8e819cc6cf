"""Choose each contestant's threads and workers on this machine, on some of the texts, before the race."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from offramp.bench.contestant import Contestant, TextRun
from offramp.bench.timer import median, time_interleaved
from offramp.data.rows import Text
from offramp.errors import InvalidInput, one_line
from offramp.inference.workers import cores

log = logging.getLogger("offramp")

TRIALS = 3  # passes over the texts of a trial
TRIAL_ROWS = 64  # or four batches for each core: fewer texts take too little time to compare


@dataclass(frozen=True)
class Ready:
    """A contestant with the setting in which it is fastest.

    Attributes:
        contestant: which one.
        threads: that compute a batch.
        workers: that answer batches at the same time.
        run: answers texts.
        seconds: that a pass over the texts of the trial took.
    """

    contestant: Contestant
    threads: int
    workers: int
    run: TextRun
    seconds: float


def candidates(count: int) -> list[tuple[int, int]]:
    """Return threads and workers that together use all cores: from one worker with all threads to one thread each."""
    return [(threads, count // threads) for threads in range(count, 0, -1) if count % threads == 0]


def trial_texts(texts: Sequence[Text], batch_size: int, count: int) -> list[Text]:
    """Return the texts of a trial, spread evenly over all."""
    rows = min(max(TRIAL_ROWS, 4 * count * batch_size), len(texts))
    return [texts[index * len(texts) // rows] for index in range(rows)]


def fastest_settings(
    contestants: Sequence[Contestant], texts: Sequence[Text], batch_size: int, count: int | None = None
) -> list[Ready]:
    """Return each contestant in its fastest setting; of variants the fastest, and none that cannot be loaded.

    Contestants are tried one after the other, the settings of one in turn.

    Args:
        contestants: those that are to race.
        texts: of the race; a part of them is answered.
        batch_size: of the race.
        count: of cores; None = those that the process may use.
    """
    count = cores() if count is None else count
    some = trial_texts(texts, batch_size, count)
    best: dict[tuple[str, ...], Ready] = {}
    for contestant in tqdm(contestants, desc="choose threads", unit="contestant", disable=None, leave=False):
        ready = _fastest(contestant, some, batch_size, candidates(count))
        if ready is not None and (contestant.group not in best or ready.seconds < best[contestant.group].seconds):
            best[contestant.group] = ready
    return list(best.values())


def _fastest(
    contestant: Contestant, texts: Sequence[Text], batch_size: int, settings: Sequence[tuple[int, int]]
) -> Ready | None:
    """Return a contestant in its fastest setting; None, and a log line, where it cannot be loaded or does not run."""
    runs: dict[tuple[int, int], TextRun] = {}
    reason = "no setting"
    for threads, workers in settings:
        try:
            runs[threads, workers] = contestant.load(threads, workers)
        except InvalidInput as error:
            reason = one_line(error)
    if not runs:
        log.info("without %s: %s", contestant.name, reason)
        return None
    calls = {setting: partial(_call, run, texts, batch_size) for setting, run in runs.items()}
    seconds = {setting: median(times) for setting, times in time_interleaved(calls, TRIALS, label="").items()}
    threads, workers = min(seconds, key=lambda setting: seconds[setting])
    return Ready(contestant, threads, workers, runs[threads, workers], seconds[threads, workers])


def _call(run: TextRun, texts: Sequence[Text], batch_size: int, _: int) -> None:
    run(texts, batch_size)
