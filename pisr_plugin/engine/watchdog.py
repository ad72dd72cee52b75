"""Ends all ranks of a distributed run, with one message, when one of them fails.

Each rank writes to the store at which the ranks met: a sign of life twice a second, and that it fails. So the others
name the rank that is gone, a mistake that all ranks make is printed once, and no rank waits forever.

torchrun names a rank that died on its own node, in a traceback of its own. It prints nothing when another node is gone:
with two nodes, one of them killed and the other in a collective, torchrun was still waiting after 45 seconds. srun and
other launchers name no rank at all. That is why this module exists.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import zlib
from collections.abc import Callable
from datetime import timedelta

from torch import distributed as dist

from pisr_plugin.utils.errors import PISRError, first_line
from pisr_plugin.utils.logging import notice

_BEAT = 0.5  # seconds between two signs of life
_MISSED = 5  # beats without one before a rank counts as gone, once a connection has broken
_PATIENCE = 240  # beats without one before it counts as gone although no connection broke, as with NCCL
_GRACE = 20  # beats that the main thread has to end by itself once a rank is gone


class RankError(PISRError):
    """Another rank has ended, so this one cannot go on."""


class RankWatchdog:
    """Watches the other ranks from a thread.

    Args:
        connect: Opens a connection to the store that all ranks share.
        rank: Rank of this process.
        world_size: Number of ranks, at least 2.
    """

    def __init__(self, connect: Callable[[], dist.Store], rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store = connect()
        self._silent = dict.fromkeys((r for r in range(world_size) if r != rank), 0)  # beats missed, by rank
        self._beats = dict.fromkeys(self._silent, b'')
        self._gone = ''  # why the run cannot go on, once the thread knows it
        self._told = False  # whether another rank prints that
        self._explaining = False  # whether the main thread is about to end the process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(connect(),), name='watchdog', daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join(timeout=10 * _BEAT)

    def explain(self, error: BaseException) -> BaseException:
        """Tells the other ranks that this one fails, and finds out whether another rank caused it.

        Args:
            error: What this rank raised.

        Returns:
            ``error``, or a :class:`RankError` when another rank has ended. Its text is empty when another rank prints
            the same message.
        """
        self._explaining, told = True, False
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it when the first rank ends; this one does too
        try:
            lost = _is_lost_connection(error) or isinstance(error, KeyboardInterrupt)
            missing = self._missing(wait=not isinstance(error, KeyboardInterrupt)) if lost else None
            if missing:
                error = RankError(missing)
            elif _is_lost_connection(error):
                error = RankError(f'the connection between the ranks broke: {first_line(error)}')
            key = f'told/{zlib.crc32(str(error).encode())}'
            told = isinstance(error, (PISRError, OSError)) and self._store.add(key, 1) > 1
            # the others name the rank that failed first, not one that ended because of it
            self._store.set(f'ended/{self.rank}', str(error) if isinstance(error, RankError) else '')
            # a broken connection wakes all ranks, a mistake only those that make it
            self._wait_for_the_others(20 if isinstance(error, RankError) else 4)
        except dist.DistError:  # the store is gone: it lives in rank 0 or in its launcher
            if _is_lost_connection(error):
                known = self._gone or 'rank 0 has ended, or the launcher that the ranks meet at; see its message.'
                error = RankError(known)
            told = told or (self._told and isinstance(error, RankError))
        return RankError('') if told else error

    def _missing(self, wait: bool) -> str | None:
        """Names a rank that has ended; None if all ranks seem to live."""
        deadline = time.monotonic() + (2 * _MISSED * _BEAT if wait else 0)
        while True:
            for rank in self._silent:
                if self._store.check([f'ended/{rank}']):
                    return _found_dead(self._store, rank)
            for rank, missed in self._silent.items():
                if missed >= _MISSED:
                    return f'rank {rank} has ended without a message: it was killed, or its machine is gone.'
            if time.monotonic() >= deadline:
                return None
            time.sleep(_BEAT / 5)

    def _wait_for_the_others(self, beats: int) -> None:
        """Waits until the living ranks have read the store, or made the same mistake, at most ``beats``.

        The store may live in this process, and a launcher ends all ranks when the first one ends.
        """
        deadline = time.monotonic() + beats * _BEAT
        while time.monotonic() < deadline:
            living = [f'ended/{rank}' for rank, missed in self._silent.items() if missed < _MISSED]
            if not living or self._store.check(living):
                return
            time.sleep(_BEAT / 10)

    def _watch(self, store: dist.Store) -> None:
        beat, gone_for = 0, 0
        while not self._over.wait(_BEAT):
            beat += 1
            try:
                store.set(f'beat/{self.rank}', str(beat))
                for rank in self._silent:
                    now = store.get(f'beat/{rank}') if store.check([f'beat/{rank}']) else b''
                    # counted in own beats, not in seconds: after a suspension all ranks are where they were
                    self._silent[rank] = 0 if now != self._beats[rank] else self._silent[rank] + 1
                    self._beats[rank] = now
                    if self._gone:
                        continue
                    if store.check([f'ended/{rank}']):
                        # a rank that gives a reason prints it too
                        self._told = bool(store.get(f'ended/{rank}'))
                        self._gone = _found_dead(store, rank)
                    elif self._silent[rank] >= _PATIENCE:
                        self._gone = f'rank {rank} has given no sign of life for {_PATIENCE * _BEAT:.0f} seconds.'
            except dist.DistError:
                self._gone = self._gone or 'rank 0 has ended, or the launcher that the ranks meet at.'
            gone_for += bool(self._gone)
            if gone_for > _GRACE and not self._explaining and not self._over.is_set():
                # the main thread waits in a collective, which no exception interrupts
                if not self._told:
                    notice(f'error: {self._gone}')
                os._exit(2)


def shared_store(timeout: timedelta = timedelta(seconds=30)) -> dist.Store:  # noqa: B008  (immutable)
    """Opens another connection to the store at which the ranks met, with a prefix of its own for keys.

    Args:
        timeout: How long to wait for the store.

    Raises:
        DistError: The store cannot be reached.
    """
    store = dist.TCPStore(
        os.environ['MASTER_ADDR'],
        int(os.environ['MASTER_PORT']),
        is_master=False,
        timeout=timeout,
        wait_for_workers=False,
    )
    # torchrun --max-restarts starts all ranks again at the same store
    return dist.PrefixStore(f'pisr_plugin/{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)


def _found_dead(store: dist.Store, rank: int) -> str:
    return store.get(f'ended/{rank}').decode() or f'rank {rank} has ended; see its message.'


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ('gloo', 'Connection closed', 'Connection reset', 'Broken pipe', 'Timed out waiting')
    )
