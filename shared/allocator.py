"""The C library's allocator, told to give back what is freed.

A batch of records and a page of a list are hundreds of kilobytes, freed after moments. glibc maps such pieces by
themselves and unmaps them, but only until it has freed one: it then takes pieces of that size for frequent, and keeps
them among the small ones, whose remains hold the memory (mallopt(3), M_MMAP_THRESHOLD). A threshold that is set stays.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 64 * 1024
_TRIMMED_BYTES = 128 * 1024


def give_back_what_is_freed() -> bool:
    """Set the thresholds of this process; False where the C library has none (musl, macOS)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIMMED_BYTES))
