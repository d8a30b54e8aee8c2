"""What ends a command, by its exit code."""

from shared.errors import OrdersBackupError


class RefusedError(OrdersBackupError):
    """The API says no, or what was asked for did not succeed: exit code 1."""


class AwayError(OrdersBackupError):
    """The API is not reachable or cannot answer now; try again later: exit code 3."""
