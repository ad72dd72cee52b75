"""Says what the C library does with memory that this process has freed."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees; for training on a CPU.

    glibc maps every large block when it is allocated and unmaps it when it is freed, so every activation of every step
    costs page faults. With this setting the process keeps the most memory that it ever used until it ends.

    Returns:
        False on a system without glibc, where nothing changes.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all((mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 256 << 20)))


def return_freed_memory() -> None:
    """Gives freed memory that lies between used blocks back to the system, where the C library is glibc."""
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).malloc_trim(0)
