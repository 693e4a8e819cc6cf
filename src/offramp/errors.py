"""The errors a user can meet. Each message says in one line what is wrong, where, and what would be right.

OfframpError
├── InvalidInput (also a ValueError)   something given to offramp is wrong
│   ├── DataError                      a file, a line, a column, a label; the message starts with the place
│   ├── UnknownName                    a name that is in no table; says which name may have been meant
│   ├── NotApplicable                  a policy or metric that has no meaning for this kind of problem
│   └── UnsupportedBackbone            an encoder that offramp cannot cut at its layers
└── CannotReach                        no threshold reaches the target; says which is the best one
"""


class OfframpError(Exception):
    """The root: catch it to catch everything that offramp raises on purpose."""


class InvalidInput(OfframpError, ValueError):
    """A value that offramp was given is wrong."""


class DataError(InvalidInput):
    """A data set cannot be used as it is; the message starts with file and line."""


class UnknownName(InvalidInput):
    """A name that offramp's tables do not hold."""


class NotApplicable(InvalidInput):
    """A policy or a metric that has no meaning for this kind of problem."""


class UnsupportedBackbone(InvalidInput):
    """An encoder whose layers offramp does not know how to run one by one."""


class CannotReach(OfframpError):
    """No threshold reaches the target; the message names the best that can be had."""
