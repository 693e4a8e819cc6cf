"""The errors that offramp raises; their messages have one line.

OfframpError
├── InvalidInput (also a ValueError)   an argument, a file or a folder is wrong
│   ├── DataError                      data that cannot be used as it is
│   ├── UnknownName                    a name that is in none of offramp's tables
│   ├── NotApplicable                  a policy or metric that has no meaning for this kind of problem
│   └── UnsupportedBackbone            an encoder whose layers offramp cannot run one by one
└── CannotReach                        no threshold reaches a target, or no certificate can be given
"""


def one_line(error: object) -> str:
    """Return the whole text of an error in one line; of an exception without a text its name."""
    return " ".join(str(error).split()) or (type(error).__name__ if isinstance(error, BaseException) else "")


class OfframpError(Exception):
    """The root of the errors below; errors of Python, torch and transformers are not among them.

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
    """A data set cannot be used as it is; where one line is at fault, the message names file and line."""


class UnknownName(InvalidInput):
    """A name that is in none of offramp's tables."""


class NotApplicable(InvalidInput):
    """A policy or a metric that has no meaning for this kind of problem."""


class UnsupportedBackbone(InvalidInput):
    """An encoder whose layers offramp cannot run one by one."""


class CannotReach(OfframpError):
    """No threshold reaches a target, or no certificate can be given for the policy.

    Example:
        >>> try:
        ...     offramp.calibrate(trace, "patience", offramp.Target(speedup=4.5))
        ... except offramp.CannotReach as error:
        ...     print(error)
        patience cannot reach a speed-up of 4.5 ...
    """
