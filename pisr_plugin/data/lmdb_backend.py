"""BasicSR's LMDB storage backend on shared handles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from basicsr.utils.file_client import LmdbBackend

from ..errors import DataError
from .lmdb import open_lmdb


class SharedLmdbBackend(LmdbBackend):
    """Reads as BasicSR's ``LmdbBackend`` does; several may read one file, also before and after a fork.

    It holds paths only. The handle is asked for at every read, so it is the process's own, and a dataset that was
    read from can still be sent to a spawned worker.

    Args:
        db_paths: Folder or folders of LMDBs.
        client_keys: A name for each of them.
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
            open_lmdb(path, **self._settings)  # a wrong path is reported here, not at the first image

    def get(self, filepath: str, client_key: str) -> bytes | None:
        """Returns the value stored under the key ``filepath`` in the LMDB called ``client_key``, None without one."""
        if client_key not in self._client:
            raise DataError(f'io_backend: no LMDB is called {client_key!r}, only {", ".join(self._client)}.')
        with open_lmdb(self._client[client_key], **self._settings).begin() as transaction:
            return transaction.get(str(filepath).encode('ascii'))
