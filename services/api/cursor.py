"""Opaque cursors: where a page ended, in a form that clients pass back and never read. Pure."""

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from services.api.problems import InvalidCursorError

_LARGEST_ID = 2**63 - 1


class _Encoded(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    order: str
    moment: datetime | None
    tie: str


@dataclass(frozen=True)
class Position:
    """The last row of a page: the list and order it belongs to, its sort key, and its id, which breaks ties.

    `moment` is None where the row has no time, or the list is ordered by id alone.
    """

    order: str
    moment: datetime | None
    tie: str

    def encode(self) -> str:
        """Letters, digits, `-` and `_` only."""
        moment = None if self.moment is None else self.moment.astimezone(UTC)
        packed = msgspec.json.encode(_Encoded(self.order, moment, self.tie))
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def decode(cls, cursor: str, *, order: str) -> "Position":
        """Raises InvalidCursorError for anything that `encode` did not make for this list in this order."""
        try:
            packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            found = msgspec.json.decode(packed, type=_Encoded)
        except (binascii.Error, ValueError, msgspec.DecodeError) as error:
            raise _foreign() from error
        if found.order != order or (found.moment is not None and found.moment.tzinfo is None):
            raise _foreign()
        return cls(order, found.moment, found.tie)

    @property
    def row_id(self) -> int:
        """The tie of a list whose rows have numbers."""
        if not (self.tie.isascii() and self.tie.isdigit() and len(self.tie) < 20 and int(self.tie) <= _LARGEST_ID):
            raise _foreign()
        return int(self.tie)

    @property
    def row_uuid(self) -> UUID:
        """The tie of a list whose rows have UUIDs."""
        try:
            return UUID(self.tie)
        except ValueError as error:
            raise _foreign() from error

    @property
    def time(self) -> datetime:
        """The sort key of a list in which every row has one."""
        if self.moment is None:
            raise _foreign()
        return self.moment


def _foreign() -> InvalidCursorError:
    return InvalidCursorError("cursor: pass back what an answer gave, unchanged, with the same sort order.")
