"""Errors that a user can mend: one message that names the cause and the remedy."""


class UserError(Exception):
    """Something outside the code is wrong; the message says what, and what to do about it."""


class ConfigError(UserError):
    """A configuration value is unknown, of the wrong type, or impossible."""


class DataError(UserError):
    """A dataset is missing, damaged, or not of the form that it should have."""


class CheckpointError(UserError):
    """A saved model or training state is missing, damaged, or does not fit."""


class UnknownName(UserError, ValueError):
    """A name that a table does not hold; the message lists those that it holds."""
