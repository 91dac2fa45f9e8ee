"""Heap: memory that was freed stays with the process.

glibc takes each large tensor from the system and gives it back when it is freed, so that all of its pages are cleared
and mapped anew for the next one: that takes two to three times as long as an addition that fills it.
"""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of malloc.h
AT_ONCE = 64 << 20  # bytes that the heap grows by, at least


def keep_freed_memory() -> None:
    """From here on, for the whole process. Where the C library is not glibc, nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, AT_ONCE)):
        mallopt(option, value)
