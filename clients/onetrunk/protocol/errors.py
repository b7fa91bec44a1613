"""The errors that the builder raises on purpose."""


class OneTrunkError(Exception):
    """Something failed: a check, an export, training. Commands exit with 1."""

    exit_code = 1


class UndefinedError(Exception):
    """A metric has no value on the rows at hand. The message says why; the score counts as 0, with that as a note."""


class UserError(OneTrunkError):
    """What the user gave is wrong. One line: what was found, what is allowed, what to do. Commands exit with 2."""

    exit_code = 2
