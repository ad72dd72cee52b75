"""Keeps freed memory for the next step, where the C library would hand it back to the system each time."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes this process keep what it frees; for training on a CPU.

    glibc maps every large block anew and unmaps it when freed, so that each activation of each step is paid for in
    page faults. The process then keeps its largest memory use for itself until it ends.

    Returns:
        False on a system without glibc, where nothing changes.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all((mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 256 << 20)))
