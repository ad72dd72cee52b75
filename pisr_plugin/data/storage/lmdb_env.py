"""Opens each LMDB once per process, for our readers and for BasicSR's datasets.

lmdb 2 and later refuse to open a file that the same process has open, so a training and a validation set on one
LMDB cannot each have a handle. A handle must not cross a fork either: a worker opens its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb

from pisr_plugin.utils.errors import DataError, did_you_mean

# Nobody writes the file while it is read. So no lock file is needed, and read-only folders and network mounts work.
# No readahead, because images are read in random order.
READ_ONLY = {'readonly': True, 'lock': False, 'readahead': False, 'meminit': False}

_handles: dict[tuple, lmdb.Environment] = {}
_opening = threading.Lock()


def open_lmdb(path: str | os.PathLike, **settings: Any) -> lmdb.Environment:
    """Opens an LMDB for reading, or returns the handle that this process already has.

    Do not keep the handle, call this function where the data is read: a forked child closes the handles of its
    parent, and a handle cannot be pickled.

    Args:
        path: The folder that holds ``data.mdb``.
        settings: Arguments of ``lmdb.open`` that replace those of :data:`READ_ONLY`.

    Raises:
        DataError: the LMDB is missing, truncated, not an LMDB, or this process has opened it with other settings.
    """
    settings = {**READ_ONLY, **settings}
    real = os.path.realpath(path)
    key = (real, *sorted(settings.items()))
    with _opening:
        if key not in _handles:
            _handles[key] = _open(Path(real), settings)
        return _handles[key]


def close_lmdb(path: str | os.PathLike) -> None:
    """Closes this process's handle of an LMDB, if there is one, so that the file can be written or replaced."""
    real = os.path.realpath(path)
    with _opening:
        for key in [key for key in _handles if key[0] == real]:
            _handles.pop(key).close()


def read_value(path: str | os.PathLike, key: str, **settings: Any) -> bytes | None:
    """Reads the value of a key.

    Args:
        path: The folder that holds ``data.mdb``.
        key: ASCII text.
        settings: As for :func:`open_lmdb`.

    Returns:
        The value, or None if the LMDB has no such key.

    Raises:
        DataError: as :func:`open_lmdb`, or the LMDB is damaged.
    """
    env = open_lmdb(path, **settings)
    try:
        with env.begin() as transaction:
            return transaction.get(key.encode('ascii'))
    except (lmdb.Error, UnicodeEncodeError) as error:
        raise DataError(f'{path}: {key!r} cannot be read: {error}.') from None


def read_keys(path: str | os.PathLike) -> set[str]:
    """Reads all keys of an LMDB.

    Raises:
        DataError: as :func:`read_value`.
    """
    env = open_lmdb(path)
    try:
        with env.begin() as transaction:
            return {bytes(key).decode('ascii', 'replace') for key in transaction.cursor().iternext(values=False)}
    except lmdb.Error as error:
        raise DataError(f'{path}: the keys cannot be read: {error}.') from None


class SharedLmdbBackend:
    """Reads as BasicSR's ``LmdbBackend`` does, but several of them may read one file, also before and after a fork.

    It holds paths only. Every read asks for the handle of its own process, so a dataset that has read images can
    still be sent to a spawned worker.

    Args:
        db_paths: Folder or folders of LMDBs.
        client_keys: Name of each LMDB.
        readonly, lock, readahead, kwargs: As in ``lmdb.open``.
    """

    def __init__(
        self,
        db_paths: str | Sequence[str],
        client_keys: str | Sequence[str] = 'default',
        readonly: bool = True,
        lock: bool = False,
        readahead: bool = False,
        **kwargs: Any,
    ) -> None:
        names = [client_keys] if isinstance(client_keys, str) else list(client_keys)
        paths = [db_paths] if isinstance(db_paths, (str, os.PathLike)) else list(db_paths)
        if len(names) != len(paths):
            raise DataError(f'io_backend: {len(names)} client_keys for {len(paths)} db_paths.')
        self.db_paths = [str(path) for path in paths]
        self._settings = {'readonly': readonly, 'lock': lock, 'readahead': readahead, **kwargs}
        self._client = dict(zip(names, self.db_paths))
        for path in self.db_paths:
            open_lmdb(path, **self._settings)  # raises for a wrong path now, not at the first image

    def get(self, filepath: str, client_key: str = 'default') -> bytes | None:
        """Returns the value of the key ``filepath`` in the LMDB called ``client_key``, or None."""
        if client_key not in self._client:
            raise DataError(f'io_backend: no LMDB is called {client_key!r}. {did_you_mean(client_key, self._client)}')
        return read_value(self._client[client_key], str(filepath), **self._settings)

    def get_text(self, filepath: str) -> str:
        """LMDBs of images hold no text, as in BasicSR."""
        raise NotImplementedError


def share_with_basicsr() -> None:
    """Makes BasicSR's datasets read LMDBs through :class:`SharedLmdbBackend`.

    Needed by: lmdb 2 and later, which allow one open per file and process. With lmdb 1 it only saves handles.
    """
    from basicsr.utils.file_client import FileClient

    FileClient._backends['lmdb'] = SharedLmdbBackend


def _open(path: Path, settings: dict[str, Any]) -> lmdb.Environment:
    """Opens an LMDB of which this process has no handle, and checks that the file is complete."""
    data_file = path / 'data.mdb' if settings.get('subdir', True) else path
    if not path.exists():
        raise DataError(f'{path}: no such LMDB.')
    if not data_file.is_file():
        raise DataError(f'{path}: not an LMDB, it has no data.mdb.')
    try:
        env = lmdb.open(str(path), **settings)
    except lmdb.Error as error:
        raise DataError(f'{path}: cannot be opened as an LMDB: {error}') from None
    try:
        # LMDB maps its pages: touching one behind the end of the file kills the process (SIGBUS).
        needed = (env.info()['last_pgno'] + 1) * env.stat()['psize']
        found = data_file.stat().st_size
        if found < needed:
            raise DataError(f'{path}: data.mdb is cut off, it has {found} of {needed} bytes. Copy or build it again.')
    except BaseException:
        env.close()
        raise
    return env


def _forget_inherited() -> None:
    """Closes a forked child's inherited handles, which leaves those of the parent open."""
    global _opening
    _opening = threading.Lock()  # a thread that exists only in the parent may hold the old one
    while _handles:
        _handles.popitem()[1].close()


if hasattr(os, 'register_at_fork'):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_inherited)
