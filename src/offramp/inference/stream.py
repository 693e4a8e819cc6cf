"""Windows of a stream: many rows at once where they come fast, what has come where the source pauses."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar, final

Item = TypeVar("Item")

WINDOW = 1024
"""The most rows that are sorted by length and answered together."""

LINGER_S = 0.01
"""How long a window that is not full waits for more rows, after its first."""

SIGNAL_S = 0.5
"""How long to wait for rows without a look at signals: Ctrl-C just before a wait is noticed only at its end."""


def full_windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one shorter; an error of the source comes after the items before it."""
    source = iter(items)
    while True:
        window: list[Item] = []
        try:
            window.extend(islice(source, size))
        except Exception:
            if window:
                yield window
            raise
        if not window:
            return
        yield window


def live_windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of at most `size` items, each as soon as the source pauses.

    A thread reads the source, one window ahead at most. An error of the source comes after the items before it. The
    thread ends with the source, or at the next item once nobody takes windows.
    """
    ahead: _ReadAhead[Item] = _ReadAhead(size)
    threading.Thread(target=ahead.fill, args=(items,), name="offramp-reader", daemon=True).start()
    try:
        while window := ahead.take():
            yield window
    finally:
        ahead.close()
    if ahead.error is not None:
        raise ahead.error


@final
class _ReadAhead(Generic[Item]):
    """Items between the thread that reads them and the one that takes them.

    Attributes:
        error: what ended the source; None while it runs, or where it ended well.
    """

    def __init__(self, size: int) -> None:
        self.error: BaseException | None = None
        self._size = size
        self._items: list[Item] = []
        self._ended = self._closed = False
        self._changed = threading.Condition()

    def fill(self, items: Iterable[Item]) -> None:
        """Read the source to its end, waiting while a whole window is ahead."""
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as error:
            self.error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Add an item, and wait until the next one has room; False once nobody takes windows."""
        with self._changed:
            self._items.append(item)
            if len(self._items) in (1, self._size):  # what take() waits for; every item would wake it for nothing
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            return not self._closed

    def take(self) -> list[Item]:
        """Return what has come, at least one item; an empty list once the source has ended."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._items or self._ended, SIGNAL_S):
                pass
            self._changed.wait_for(lambda: len(self._items) >= self._size or self._ended, LINGER_S)
            window, self._items = self._items, []
            self._changed.notify_all()
        return window

    def close(self) -> None:
        """Let the reading thread end at its next item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
