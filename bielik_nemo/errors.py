"""What a user did or gave that cannot work, as opposed to a bug of ours.

The command line prints a `UserError` as one line without a traceback and exits with status 2. Messages name the key,
file or line, what was found, and what is allowed.
"""


class UserError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(UserError):
    """A configuration key is unknown, mistyped or impossible."""


class DataError(UserError):
    """A text, dataset or tokenizer cannot be used."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not what it should be."""


class GateError(UserError):
    """A check of the work itself failed: teacher loss, parity, unit count. Going on would be silently wrong."""


class Stopped(BaseException):
    """The run was asked to end, and the same command goes on later: neither a success nor an error.

    Not an `Exception`: it is raised wherever a signal comes, and must pass through code that mends its own.
    """
