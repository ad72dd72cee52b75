"""Where the parts of a prepared data set lie, and what its record says.

A data set's folder:

    prepare.json                  what was asked for, of which photos, and what is finished
    HR/NAME.png                   the photos, cropped
    LR_bicubic/X2/NAME.png        one folder per scale, same names
    HR.lmdb, LR_bicubic_X2.lmdb   the same files, same keys
    HR_raw.lmdb, LR_bicubic_X2_raw.lmdb   the same images, decoded
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..files import write_whole

RECORD = 'prepare.json'
_SHOWN = 20  # problems listed in one message


def hr_folder(root: Path) -> Path:
    """Where HR images lie."""
    return root / 'HR'


def lr_folder(root: Path, scale: int) -> Path:
    """Where LR images lie."""
    return root / 'LR_bicubic' / f'X{scale}'


def lmdb_of(folder: Path, root: Path) -> Path:
    """The LMDB that holds the images of a folder: ``LR_bicubic/X2`` becomes ``LR_bicubic_X2.lmdb``."""
    return root / ('_'.join(folder.relative_to(root).parts) + '.lmdb')


def raw_lmdb_of(folder: Path, root: Path) -> Path:
    """The LMDB that holds the images of a folder decoded: ``LR_bicubic/X2`` becomes ``LR_bicubic_X2_raw.lmdb``."""
    return root / ('_'.join(folder.relative_to(root).parts) + '_raw.lmdb')


def stores_of(root: Path, scales: Sequence[int], part: str) -> list[Path]:
    """HR's store and those of all scales, for a part of a data set: ``images``, ``lmdb`` or ``raw``."""
    folders = image_folders(root, scales)
    name = {'lmdb': lmdb_of, 'raw': raw_lmdb_of}.get(part)
    return [name(folder, root) for folder in folders] if name else folders


def image_folders(root: Path, scales: Sequence[int]) -> list[Path]:
    """HR's folder and those of all scales."""
    return [hr_folder(root), *(lr_folder(root, scale) for scale in scales)]


def read_record(root: Path) -> dict:
    """What ``prepare.json`` says of a data set.

    Raises:
        DataError: it is not there or damaged.
    """
    path = root / RECORD
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        if not {'options', 'sources', 'pieces', 'done'} <= set(record):
            raise ValueError('keys are missing')
        return record
    except FileNotFoundError:
        raise DataError(f'{root}: no {RECORD} in it, so it was not built by prepare_data.') from None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f'{path}: cannot be read: {error}') from None


def save_record(root: Path, record: dict) -> None:
    """Writes ``prepare.json``, whole or not at all."""
    write_whole(root / RECORD, json.dumps(record, indent=1) + '\n')


def keys_of(name: str, count: int) -> list[str]:
    """File names of pieces as BasicSR's extract_subimages gives them; a photo kept whole has its own."""
    return [f'{name}_s{number:03d}' for number in range(1, count + 1)] if count else [name]


def piece_keys(record: dict) -> list[str]:
    """The keys of all images of a finished data set, sorted."""
    return sorted(key for name, count in record['pieces'].items() for key in keys_of(name, count))


def complain(heading: str, problems: Sequence[str], advice: str) -> DataError:
    """One error that lists problems, shortened when there are many."""
    more = [f'... and {len(problems) - _SHOWN} more'] if len(problems) > _SHOWN else []
    return DataError('\n  '.join([heading, *problems[:_SHOWN], *more]) + f'\n{advice}')


def words(values: object, separator: str = ' ') -> str:
    """Values as a message shows them."""
    if isinstance(values, str) or not hasattr(values, '__iter__'):
        return str(values)
    return separator.join(map(str, values)) or 'none'
