"""Reads text files whole, within a limit: plain, as JSON, as records."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pisr_plugin.utils.errors import DataError, shown

MOST_BYTES = 1 << 28  # a list of five million images


def require_regular_file(path: Path) -> None:
    """Refuses a folder, a FIFO or a device, on which reading could wait for ever.

    Raises:
        DataError: ``path`` is not a regular file.
        OSError: the file system cannot find it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f'{path}: not a regular file.')


def read_text(path: Path, hint: str = '', most: int = MOST_BYTES) -> str:
    """Reads a whole text file in UTF-8, without the byte order mark that some editors write.

    Args:
        path: The file.
        hint: A sentence that the error message ends with.
        most: Largest size of the file in bytes.

    Raises:
        DataError: the file is missing, not a regular file, too large or not UTF-8.
    """
    try:
        require_regular_file(path)
        if path.stat().st_size > most:
            raise DataError(f'{path}: too large (found {path.stat().st_size} bytes). Expected at most {most}.')
        return path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError:
        reason = 'not a text file in utf-8'
    except (OSError, ValueError) as error:  # no file, no permission; a NUL in the name
        reason = getattr(error, 'strerror', None) or str(error)
    raise DataError(f'{path}: {reason}. {hint}'.rstrip())


def read_json(path: Path, hint: str = '', most: int = MOST_BYTES, expected: Mapping[str, Any] | None = None) -> Any:
    """Reads a JSON file; the arguments are those of :func:`read_text`, and the ``kind`` and ``version`` expected in it.

    Raises:
        DataError: as :func:`read_text`, or the file is not JSON, or of another kind or version.
    """
    try:
        content = json.loads(read_text(path, hint, most))
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path} is not JSON: {error}. {hint}'.rstrip()) from None
    for key, value in (expected or {}).items():
        found = content.get(key) if isinstance(content, dict) else None
        if found != value:
            raise DataError(f'{path}: {key}: unknown (found {shown(found)}). Expected {value!r}.')
    return content


def read_records(path: str | os.PathLike) -> list[dict]:
    """Reads the records of a file with one JSON object in each line, such as ``metrics.jsonl``.

    A kill, a full disk or a damaged disk may leave lines that are no record. They are skipped.

    Args:
        path: The file; no records are in a file that does not exist.
    """
    path = Path(path)
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and line.endswith('\n'):
            records.append(record)
    return records
