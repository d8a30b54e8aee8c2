"""Opaque cursors: where a page ended, in a form that clients pass back and never read."""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime

from services.api.problems import InvalidCursorError


@dataclass(frozen=True)
class Position:
    """The last row of a page: its sort key and its id, which breaks ties."""

    moment: datetime | None
    row_id: int

    def encode(self) -> str:
        moment = "" if self.moment is None else self.moment.isoformat()
        return base64.urlsafe_b64encode(f"{moment}|{self.row_id}".encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, cursor: str) -> "Position":
        """Raises InvalidCursorError for anything that `encode` did not make."""
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
            moment, separator, row_id = text.partition("|")
            if not separator or not row_id.isascii() or not row_id.isdigit() or len(row_id) > 18:
                raise ValueError(text)
            position = cls(datetime.fromisoformat(moment) if moment else None, int(row_id))
        except (ValueError, binascii.Error) as error:
            raise InvalidCursorError("cursor: pass back what an answer gave, unchanged") from error
        if position.moment is not None and position.moment.tzinfo is None:
            raise InvalidCursorError("cursor: pass back what an answer gave, unchanged")
        return position
