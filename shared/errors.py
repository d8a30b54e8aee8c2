"""The errors that services share, each named for what its catcher does about it."""

from datetime import timedelta


class OrdersBackupError(Exception):
    """Base of every error of this product that has a meaning of its own."""


class ConfigurationError(OrdersBackupError):
    """A setting is missing or wrong; the service must not start. The text names the variable."""


class TransientError(OrdersBackupError):
    """It may succeed later, unchanged: wait, then try again.

    `retry_after` is the wait the other side asked for, if it did.
    """

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PermanentError(OrdersBackupError):
    """It will never succeed as it is: set it aside with its cause."""
