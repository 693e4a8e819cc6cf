"""Where texts come from: a source that can be waited for, or one that may pause and is read in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar, final

Item = TypeVar("Item")

MOST_CHARACTERS = 1 << 22
"""Of the texts that are read ahead: what bounds the memory where each has megabytes."""


class Source(Protocol[Item]):
    """Items, taken as they come.

    Attributes:
        linger_s: how long a row may wait for others that come later.
        error: what ended the source; None where it ended well.
    """

    linger_s: float
    error: BaseException | None

    @property
    def ended(self) -> bool:
        """Return whether all items are taken."""

    def open(self, changed: Callable[[], None]) -> None:
        """Begin to read; `changed` is called where items have come that `take` did not return."""

    def take(self, most: int) -> list[Item]:
        """Return at most so many items; none where the source pauses or has ended."""

    def close(self) -> None:
        """Read no further."""


@final
class SteadySource(Generic[Item]):
    """A source that is waited for, such as a list or a file; read by the thread that takes."""

    linger_s = 0.25
    """Bounds how many answers wait for one before them."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.ended = False
        self.error: BaseException | None = None
        self._items = iter(items)

    def open(self, changed: Callable[[], None]) -> None:
        """Do nothing: no items come by themselves."""

    def take(self, most: int) -> list[Item]:
        """Return the next items, fewer where they are long and at the end."""
        taken: list[Item] = []
        characters = 0
        try:
            for item in self._items:
                taken.append(item)
                characters += _characters(item)
                if len(taken) == most or characters >= MOST_CHARACTERS:
                    return taken
        except Exception as error:
            self.error = error
        self.ended = True
        return taken

    def close(self) -> None:
        """Do nothing: what is not taken is not read."""


@final
class LiveSource(Generic[Item]):
    """A source that may pause, such as a pipe. A thread reads it, at most `size` items ahead.

    Of long items it reads fewer ahead. The thread ends with the source, or at the next item once the source is closed.
    """

    linger_s = 0.01

    def __init__(self, items: Iterable[Item], size: int) -> None:
        self.error: BaseException | None = None
        self._source, self._size = items, size
        self._items: list[Item] = []
        self._characters = 0  # of `_items`
        self._ended = self._closed = False
        self._taken = threading.Condition()

    @property
    def ended(self) -> bool:
        """Return whether all items are taken."""
        with self._taken:
            return self._ended and not self._items

    def open(self, changed: Callable[[], None]) -> None:
        """Start the thread."""
        threading.Thread(target=self._read, args=(changed,), name="offramp-reader", daemon=True).start()

    def take(self, most: int) -> list[Item]:
        """Return what has come."""
        with self._taken:
            items, self._items = self._items[:most], self._items[most:]
            self._characters = sum(map(_characters, self._items))
            self._taken.notify_all()
        return items

    def close(self) -> None:
        """Let the thread end at its next item."""
        with self._taken:
            self._closed = True
            self._taken.notify_all()

    def _read(self, changed: Callable[[], None]) -> None:
        """Read the source to its end, waiting while `size` items are ahead."""
        try:
            for item in self._source:
                if not self._put(item, changed):
                    break
        except BaseException as error:
            self.error = error
        with self._taken:
            self._ended = True
        changed()

    def _put(self, item: Item, changed: Callable[[], None]) -> bool:
        """Add an item, and wait until the next one has room; False once the source is closed."""
        with self._taken:
            self._items.append(item)
            self._characters += _characters(item)
            first = len(self._items) == 1
        if first:  # every item would wake the other thread for nothing
            changed()
        with self._taken:
            self._taken.wait_for(lambda: self._closed or self._has_room())
            return not self._closed

    def _has_room(self) -> bool:
        return len(self._items) < self._size and self._characters < MOST_CHARACTERS


def _characters(item: object) -> int:
    """Return the characters of a text or a pair; 0 of anything else."""
    if isinstance(item, str):
        return len(item)
    return sum(map(_characters, item)) if isinstance(item, tuple) else 0
