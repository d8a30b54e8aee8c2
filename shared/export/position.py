"""Where an export stands: enough to go on with it elsewhere, and to prove what went before. Pure.

The orders of an export come in chunks. `digest` is a chain over the bytes of all chunks so far: each link is
`SHA-256(link before + bytes of the chunk)`, the first one follows 32 zero bytes. The first order of a chunk carries the
position before it as its `cursor`.
"""

import base64
import binascii
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shared.errors import OrdersBackupError

_VERSION = 1
_PACKED = struct.Struct(">Bqqqq8s32s")
_DIGEST_BYTES = 32
_SELECTION_BYTES = 8


class ForeignPositionError(OrdersBackupError):
    """The text is no cursor of an export, or one of another export."""


def selection_of(parts: Iterable[str]) -> bytes:
    """What a cursor belongs to: the filters of an export in few bytes."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=_SELECTION_BYTES).digest()


@dataclass(frozen=True)
class ExportPosition:
    """After so many orders, at one row of one walk."""

    selection: bytes
    until: int
    """The largest `orders.id` when the export began: what comes later is not part of it."""
    token_id: int = 0
    """Whose orders are walked through; 0: everybody's at once."""
    after: int = 0
    """The last `orders.id` of that walk."""
    orders: int = 0
    digest: bytes = bytes(_DIGEST_BYTES)

    @property
    def is_start(self) -> bool:
        return self.orders == 0

    def past(self, chunk: bytes, orders: int, *, token_id: int, after: int) -> "ExportPosition":
        """The position after one more chunk."""
        digest = hashlib.sha256(self.digest)
        digest.update(chunk)
        return replace(self, token_id=token_id, after=after, orders=self.orders + orders, digest=digest.digest())

    def encode(self) -> str:
        """Letters, digits, `-` and `_` only."""
        packed = _PACKED.pack(_VERSION, self.until, self.token_id, self.after, self.orders, self.selection, self.digest)
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def decode(cls, cursor: str) -> "ExportPosition":
        """Raises ForeignPositionError for anything that `encode` did not make."""
        try:
            packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            version, until, token_id, after, orders, selection, digest = _PACKED.unpack(packed)
        except (binascii.Error, ValueError, struct.error) as error:
            raise ForeignPositionError("not a cursor of an export") from error
        if version != _VERSION or min(until, token_id, after, orders) < 0:
            raise ForeignPositionError("not a cursor of an export")
        return cls(selection, until, token_id, after, orders, digest)
