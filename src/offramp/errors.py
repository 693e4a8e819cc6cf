"""The errors that offramp raises. Each message names in one line what is wrong, where, and what would be right.

OfframpError
├── InvalidInput (also a ValueError)   an argument, a file or a folder is wrong
│   ├── DataError                      a file, a line, a column, a label; the message starts with file and line
│   ├── UnknownName                    a name that is in no table; the message names the nearest one
│   ├── NotApplicable                  a policy or metric that has no meaning for this kind of problem
│   └── UnsupportedBackbone            an encoder that offramp cannot cut at its layers
└── CannotReach                        no threshold reaches the target; the message names the best value
"""


class OfframpError(Exception):
    """The root of offramp's errors: catching it catches all that offramp raises on purpose.

    Example:
        >>> try:
        ...     offramp.load_policy("entropie")
        ... except offramp.OfframpError as error:
        ...     print(error)
        unknown name 'entropie'; did you mean 'entropy'? known: ...
    """


class InvalidInput(OfframpError, ValueError):
    """An argument, a file or a folder is wrong; also a `ValueError`.

    Example:
        >>> try:
        ...     offramp.Target(max_drop=2)
        ... except offramp.InvalidInput as error:
        ...     print(error)
        max_drop must be from 0 to 1, got 2
    """


class DataError(InvalidInput):
    """A data set cannot be used as it is; the message starts with file and line."""


class UnknownName(InvalidInput):
    """A name that is in none of offramp's tables."""


class NotApplicable(InvalidInput):
    """A policy or a metric that has no meaning for this kind of problem."""


class UnsupportedBackbone(InvalidInput):
    """An encoder whose layers offramp cannot run one by one."""


class CannotReach(OfframpError):
    """No threshold reaches the target; the message names the best value that one reaches.

    Example:
        >>> try:
        ...     offramp.calibrate(trace, "patience", offramp.Target(speedup=4.5))
        ... except offramp.CannotReach as error:
        ...     print(error)
        Patience() cannot reach a speed-up of 4.5 ...
    """
