"""What is freed goes back to the system, also after a large piece has been freed before."""

import subprocess
import sys

import pytest

# Large pieces, freed in the order in which a service frees them: each behind a small one that stays.
_WORK = """
import ctypes, sys
from shared.allocator import give_back_what_is_freed

if sys.argv[1] == "told" and not give_back_what_is_freed():
    sys.exit(77)

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = Mallinfo2
libc.free(libc.malloc(1 << 20))  # from here on glibc would keep pieces of this size
pieces = [(libc.malloc(300 << 10), libc.malloc(8 << 10)) for _ in range(200)]
for large, _small in pieces:
    libc.free(large)
print(libc.mallinfo2().arena)
"""


def _kept_by(how: str) -> int:
    work = subprocess.run([sys.executable, "-c", _WORK, how], capture_output=True, text=True, check=False)
    if work.returncode == 77:
        pytest.skip("no glibc: its allocator has no such thresholds, and nothing is set")
    if "undefined symbol: mallinfo2" in work.stderr:
        pytest.skip("glibc before 2.33 does not tell what it holds (mallinfo2)")
    assert work.returncode == 0, work.stderr
    return int(work.stdout)


def test_large_pieces_that_are_freed_are_not_kept() -> None:
    told, untold = _kept_by("told"), _kept_by("untold")

    assert untold > 200 * (300 << 10)
    assert told < untold / 4
