"""One LMDB handle per file and process, shared by all who read from it.

lmdb 2 and later refuse to open a file that the same process has open, so a training and a validation set on one
LMDB cannot each have a handle. Nor may a handle cross a fork: a worker asks for its own.

The module needs neither BasicSR nor torch.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import lmdb

from ..errors import DataError

# Readers only, of a file that nobody writes meanwhile: no lock file, so read-only folders and network mounts work;
# no readahead, because patches are read in random order.
READ_ONLY = {'readonly': True, 'lock': False, 'readahead': False, 'meminit': False}

_handles: dict[tuple, lmdb.Environment] = {}
_opening = threading.Lock()


def open_lmdb(path: str | os.PathLike, **settings: Any) -> lmdb.Environment:
    """Opens an LMDB for reading, or hands out the handle that this process already has.

    Call it where the data is read, in the worker, rather than keep the handle: in a forked child the parent's handles
    are closed, and a handle does not pickle.

    Args:
        path: The folder that holds ``data.mdb``.
        settings: Arguments of ``lmdb.open`` that replace those of :data:`READ_ONLY`.

    Raises:
        DataError: nothing is there, it is not an LMDB, it is cut off, or this process has it open in another way.
    """
    settings = {**READ_ONLY, **settings}
    real = os.path.realpath(path)
    key = (real, *sorted(settings.items()))
    with _opening:
        if key not in _handles:
            _handles[key] = _open(Path(real), settings)
        return _handles[key]


def close_lmdb(path: str | os.PathLike) -> None:
    """Closes this process's handle on a file, if it has one, so that the file can be written or replaced."""
    real = os.path.realpath(path)
    with _opening:
        for key in [key for key in _handles if key[0] == real]:
            _handles.pop(key).close()


def _open(path: Path, settings: dict[str, Any]) -> lmdb.Environment:
    """Opens a file of which this process has no handle, and checks that all of it is there."""
    data_file = path / 'data.mdb' if settings.get('subdir', True) else path
    if not path.exists():
        raise DataError(f'{path}: no such LMDB.')
    if not data_file.is_file():
        raise DataError(f'{path}: not an LMDB, it has no data.mdb.')
    try:
        env = lmdb.open(str(path), **settings)
    except lmdb.Error as error:
        raise DataError(f'{path}: cannot be opened as an LMDB: {error}') from error
    try:
        # Pages are mapped, not read: to touch one behind the end of the file kills the process (SIGBUS).
        needed = (env.info()['last_pgno'] + 1) * env.stat()['psize']
        found = data_file.stat().st_size
        if found < needed:
            raise DataError(f'{path}: data.mdb is cut off, it has {found} of {needed} bytes. Copy or build it again.')
    except BaseException:
        env.close()
        raise
    return env


def _forget_inherited() -> None:
    """Lets a forked child open its own handles: closing the inherited ones there leaves the parent's as they are."""
    global _opening
    _opening = threading.Lock()  # another thread of the parent may have held it, and is not here to release it
    while _handles:
        _handles.popitem()[1].close()


if hasattr(os, 'register_at_fork'):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_inherited)
