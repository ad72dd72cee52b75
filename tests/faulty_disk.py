"""A disk that fails on purpose, and a model of what a power cut leaves on one.

:class:`FaultyDisk` stands between a run and the files below a folder: it counts the operations, lets one of them fail,
and keeps a journal. :class:`DiskModel` replays a journal and writes what a disk may hold after a power cut: names and
contents that nobody synced are lost, kept or cut off.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from collections.abc import Callable
from pathlib import Path

TAKES_SPACE = {'open', 'mkdir', 'write', 'close', 'sync', 'rename'}
_REAL = {name: getattr(os, name) for name in ('open', 'mkdir', 'replace', 'rename', 'unlink', 'remove', 'fsync')}
_open = builtins.open


class FaultyDisk:
    """Counts the file operations of this process below a folder, from :meth:`install` on.

    Args:
        root: The folder.
        fail_at: Number of the operation that fails, from 1; None: none fails.
        error: ``errno.EIO``: that operation fails. ``errno.ENOSPC``: those that take space fail from then on.
    """

    def __init__(self, root: Path, fail_at: int | None = None, error: int = errno.EIO) -> None:
        self.root, self.fail_at, self.error = str(root), fail_at, error
        self.count = 0
        self.journal: list[tuple] = []
        self.saved: list[int] = []  # iterations whose state was complete before the failure

    def install(self) -> None:
        """Replaces the functions by which Python changes files. For a process that ends soon: there is no way back."""
        os.open = self._os_open
        os.mkdir = lambda path, *args, **options: self._simple('mkdir', path, *args, **options)
        os.unlink = os.remove = lambda path, *args, **options: self._simple('unlink', path, *args, **options)
        os.replace = os.rename = self._rename
        os.fsync = self._fsync
        builtins.open = io.open = self._open_file

    def happens(self, kind: str, path: object, *details: object) -> None:
        """Counts an operation, fails it if it is its turn, and notes it."""
        path = os.path.abspath(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else ''
        if not path.startswith(self.root):
            return
        self.count += 1
        full = self.error == errno.ENOSPC and kind in TAKES_SPACE
        if self.fail_at and (self.count == self.fail_at or (full and self.count > self.fail_at)):
            raise OSError(self.error, os.strerror(self.error), path)
        self.journal.append((kind, path, *details))
        if kind == 'rename' and str(details[0]).endswith('.state'):
            self.saved.append(int(Path(details[0]).stem))

    def _simple(self, kind: str, path, *args, **options) -> None:
        if kind != 'unlink' or os.path.lexists(path):
            if kind != 'mkdir' or not os.path.exists(path):
                self.happens(kind, path)
        _REAL[kind](path, *args, **options)

    def _rename(self, source, target, **options) -> None:
        self.happens('rename', source, os.path.abspath(target))
        _REAL['replace'](source, target, **options)

    def _fsync(self, number) -> None:
        number = number if isinstance(number, int) else number.fileno()
        self.happens('sync', os.readlink(f'/proc/self/fd/{number}'))
        _REAL['fsync'](number)

    def _os_open(self, path, flags, *args, **options) -> int:
        if not flags & os.O_CREAT:
            self.happens('read', path)
        elif not os.path.exists(path):
            self.happens('open', path, 'create')
        return _REAL['open'](path, flags, *args, **options)

    def _open_file(self, file, mode='r', *args, **options):
        if isinstance(file, int) or not set(mode) & set('wax+'):
            if isinstance(file, (str, os.PathLike)) and os.path.isfile(file):
                self.happens('read', file)
            return _open(file, mode, *args, **options)
        self.happens('open', file, 'empty' if 'w' in mode else '' if os.path.exists(file) else 'create')
        return _File(self, os.path.abspath(file), _open(file, mode, *args, **options))


class _File:
    """A file open for writing."""

    def __init__(self, disk: FaultyDisk, path: str, file) -> None:
        self.disk, self.path, self.file = disk, path, file

    def write(self, content):
        self.disk.happens('write', self.path, content.encode() if isinstance(content, str) else bytes(content))
        return self.file.write(content)

    def close(self) -> None:
        if self.file.closed:
            return
        try:
            self.disk.happens('close', self.path)
        finally:
            self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class DiskModel:
    """What a journal's operations did to names and contents, and what of it was synced.

    A folder is a dict of names in ``names``, by its number; a file is its content in ``contents``. What :meth:`do`
    changes stays pending until a sync of that folder or file.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.names, self.synced_names = {0: {}}, {0: {}}  # by folder: name to number
        self.contents, self.synced_contents = {}, {}  # by file: bytes
        self.pending: dict[int, list[dict]] = {0: []}  # by folder: changes of names

    def do(self, kind: str, path: str, *details) -> None:
        """Carries out one operation of a journal."""
        folder, name = self._look_up(path)
        if folder is None:
            return
        number = self.names[folder].get(name) if name else 0
        if kind == 'mkdir' or (kind == 'open' and details[0] in ('create', 'empty') and number is None):
            number = len(self.names) + len(self.contents)
            if kind == 'mkdir':
                self.names[number], self.synced_names[number], self.pending[number] = {}, {}, []
            else:
                self.contents[number] = self.synced_contents[number] = b''
            self._change(folder, {name: number})
        elif number is None:
            return
        elif kind == 'open' and details[0] == 'empty':
            self.contents[number] = b''
        elif kind == 'write':
            self.contents[number] += details[0]
        elif kind == 'unlink':
            self._change(folder, {name: None})
        elif kind == 'rename':
            self._change(folder, {name: None, Path(details[0]).name: number})  # all of ours stay in their folder
        elif kind == 'sync' and number in self.contents:
            self.synced_contents[number] = self.contents[number]
        elif kind == 'sync':
            for change in self.pending[number]:
                _apply(self.synced_names[number], change)
            self.pending[number] = []

    def write(self, folder: Path, keep_name: Callable[[], bool], keep_share: Callable[[], float]) -> None:
        """Writes what the disk may hold.

        Args:
            folder: Gets the files.
            keep_name: Called for each change of a name that was not synced: whether the disk has it.
            keep_share: Called for each file: how much of the content that was not synced the disk has, 0 to 1.
        """
        self._write(0, folder, keep_name, keep_share)

    def _write(self, number: int, path: Path, keep_name, keep_share) -> None:
        if number in self.contents:
            now, synced = self.contents[number], self.synced_contents[number]
            length = len(synced) + round((len(now) - len(synced)) * keep_share())
            path.write_bytes(now[:length] if now.startswith(synced) else synced)
            return
        path.mkdir(exist_ok=True)
        names = dict(self.synced_names[number])
        for change in self.pending[number]:
            if keep_name():
                _apply(names, change)
        for name, child in names.items():
            self._write(child, path / name, keep_name, keep_share)

    def _change(self, folder: int, change: dict[str, int | None]) -> None:
        _apply(self.names[folder], change)
        self.pending[folder].append(change)

    def _look_up(self, path: str) -> tuple[int | None, str]:
        """Returns the number of the folder that holds a path, and the path's name in it."""
        parts = Path(path).relative_to(self.root).parts
        folder: int | None = 0
        for part in parts[:-1]:
            folder = self.names.get(folder, {}).get(part)
        return (folder if folder in self.names else None), parts[-1] if parts else ''


def _apply(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, number in change.items():
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def cuts(seed: int) -> dict[str, tuple[Callable[[], bool], Callable[[], float]]]:
    """Returns what may happen to changes that were not synced, by name; see :meth:`DiskModel.write`."""
    chance = random.Random(seed)
    return {
        'nothing': (lambda: False, lambda: 0),
        'names': (lambda: True, lambda: 0),
        'halves': (lambda: True, lambda: 0.5),
        'some': (lambda: chance.random() < 0.5, lambda: chance.random()),
        'everything': (lambda: True, lambda: 1),
    }
