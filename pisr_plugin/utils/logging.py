"""BasicSR's log: where its lines go; and lines for the user outside of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FORMAT = logging.Formatter('%(asctime)s %(levelname)s: %(message)s')


def notice(text: str) -> None:
    """Writes a line to stderr at once, for what the user must know where no log is open."""
    sys.stderr.write(f'{text}\n')
    sys.stderr.flush()


@contextmanager
def quiet() -> Iterator[None]:
    """Drops all lines of BasicSR's log inside the block."""
    logger = logging.getLogger('basicsr')
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _LogFile(logging.FileHandler):
    """Drops lines that a full disk does not take; the next save of the run reports the disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def open_log(path: Path, rank: int = 0) -> logging.Logger:
    """Points BasicSR's log at the terminal and at a file.

    Args:
        path: Log file; each stage has one of its own.
        rank: Rank of this process. Ranks other than 0 log errors only, to the terminal only.
    """
    from basicsr.utils.logger import initialized_logger

    logger = logging.getLogger('basicsr')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    initialized_logger['basicsr'] = True  # BasicSR would add a second terminal handler
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if rank == 0:
        handlers.append(_LogFile(path, encoding='utf-8'))
    for handler in handlers:
        handler.setFormatter(_FORMAT)
        logger.addHandler(handler)
    return logger


@contextmanager
def file_only() -> Iterator[None]:
    """Keeps lines off the terminal inside the block, warnings excepted; the log file gets them all."""
    terminals = [h for h in logging.getLogger('basicsr').handlers if not isinstance(h, logging.FileHandler)]
    levels = [handler.level for handler in terminals]
    for handler in terminals:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(terminals, levels):
            handler.setLevel(level)
