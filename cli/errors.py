"""What ends a command, by its exit code."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import OrdersBackupError

# Of a disk: nothing that is reached over a network fails with one of these.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class RefusedError(OrdersBackupError):
    """The API says no, or what was asked for did not succeed: exit code 1."""


class AwayError(OrdersBackupError):
    """The API is not reachable or cannot answer now; try again later: exit code 3."""


class FileError(OrdersBackupError):
    """A file of this machine cannot be read or written, later no better than now: exit code 1."""


def is_of_a_file(error: Exception) -> bool:
    """Whether it is about this machine's files; connections fail with OSErrors, too, but name no file."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK)


@contextmanager
def files(where: Path | str) -> Iterator[None]:
    """Around work on files and nothing else that fails with OSErrors: raises FileError, which names the file."""
    try:
        yield
    except BrokenPipeError:
        # Whoever read has seen enough; typer ends the program without a word.
        raise
    except OSError as error:
        raise FileError(f"{error.filename or where}: {error.strerror or error}") from error
