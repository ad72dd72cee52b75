"""The folders of a prepared data set, and its record.

A data set's folder:

    prepare.json                          options, source photos and finished parts
    HR/NAME.png                           the photos, cropped
    LR_bicubic/X2/NAME.png                one folder per scale, same names
    HR.lmdb, LR_bicubic_X2.lmdb           the same files, same keys
    HR_raw.lmdb, LR_bicubic_X2_raw.lmdb   the same images, decoded
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from pisr_plugin.utils.checks import is_whole
from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.files import write_whole
from pisr_plugin.utils.text_files import read_json

RECORD = 'prepare.json'
PARTS = ('images', 'lmdb', 'raw')  # of a data set: PNG files, LMDBs of them, LMDBs of decoded images
KEY = '[0-9A-Za-z_-]{1,255}'  # names that LMDB, BasicSR and every file system take
MOST_SCALE = 64
_MOST_PIECES = 5_000_000
_SHOWN = 20  # problems listed in one message


def hr_folder(root: Path) -> Path:
    """Returns the folder of the HR images."""
    return root / 'HR'


def stores_of(root: Path, scales: Sequence[int], part: str) -> list[Path]:
    """Returns the stores of HR and of all scales, for one of :data:`PARTS`: folders of images, or their LMDBs."""
    folders = image_folders(root, scales)
    if part == 'images':
        return folders
    ending = '_raw.lmdb' if part == 'raw' else '.lmdb'
    return [root / ('_'.join(folder.relative_to(root).parts) + ending) for folder in folders]


def image_folders(root: Path, scales: Sequence[int]) -> list[Path]:
    """Returns the folders of HR and of all scales."""
    return [hr_folder(root), *(root / 'LR_bicubic' / f'X{scale}' for scale in scales)]


def read_record(root: Path) -> dict:
    """Reads ``prepare.json``, and fills in what earlier versions did not write.

    Returns:
        ``options`` as :class:`~pisr_plugin.data.prepare.build.PairOptions` records them; ``bicubic``, the scales whose
        LR must be MATLAB's bicubic of HR; ``sources``, bytes by file name; ``pieces``, number of sub-images by name, 0
        for a whole image; ``done``, the finished parts.

    Raises:
        DataError: the file is missing or damaged, or holds an impossible value.
    """
    path = root / RECORD
    if not path.exists():
        raise DataError(f'{root}: it has no {RECORD}, so it was not built by prepare_data.')
    record = read_json(path, 'Build the data set again.')
    wrong = _wrong_key(record)
    if wrong:
        raise DataError(f'{path}: {wrong}: missing or impossible. Build the data set again in another folder.')
    options = record['options']
    return {'bicubic': [scale for scale in options['scales'] if scale not in options['lr_dirs']], **record}


def _wrong_key(record: object) -> str | None:
    """Returns the first key of a record whose value is missing or impossible."""

    def scales(value: object) -> bool:
        return isinstance(value, list) and all(is_whole(scale, 2, MOST_SCALE) for scale in value)

    def counts(value: object, name: str, high: int) -> bool:
        if not isinstance(value, dict):
            return False
        return all(re.fullmatch(name, key) and is_whole(count, 0, high) for key, count in value.items())

    rules = {
        'options': lambda value: isinstance(value, dict),
        'options.scales': lambda value: scales(value) and value,
        'options.crop': lambda value: value in ('lcm', 'scale'),
        'options.lr_dirs': scales,
        'sources': lambda value: counts(value, r'[^/\0]+', 1 << 50),
        # a name becomes a path and a number of pieces a list of names
        'pieces': lambda value: counts(value, KEY, _MOST_PIECES) and sum(value.values()) <= _MOST_PIECES,
        'done': lambda value: isinstance(value, list) and all(part in PARTS for part in value),
        'bicubic': scales,
    }
    values = record if isinstance(record, dict) else {}
    for name, is_possible in rules.items():
        parent, _, key = name.rpartition('.')
        block = values[parent] if parent else values
        if not is_possible(block.get(key, [] if key == 'bicubic' else None)):
            return name
    return None


def save_record(root: Path, record: dict) -> None:
    """Writes ``prepare.json``; a stopped write leaves the old file."""
    write_whole(root / RECORD, json.dumps(record, indent=1) + '\n')


def keys_of(name: str, count: int) -> list[str]:
    """Returns the keys of a photo's sub-images, named as by BasicSR's extract_subimages, or its own if it is whole."""
    return [f'{name}_s{number:03d}' for number in range(1, count + 1)] if count else [name]


def piece_keys(record: dict) -> list[str]:
    """Returns the keys of all images of a finished data set, sorted."""
    return sorted(key for name, count in record['pieces'].items() for key in keys_of(name, count))


def problem_list(heading: str, problems: Sequence[str], advice: str) -> DataError:
    """Makes one error that lists the first problems and counts the others."""
    more = [f'... and {len(problems) - _SHOWN} more'] if len(problems) > _SHOWN else []
    return DataError('\n  '.join([heading, *problems[:_SHOWN], *more]) + f'\n{advice}')


def joined(values: object, separator: str = ' ') -> str:
    """Returns values as a message shows them."""
    if isinstance(values, str) or not hasattr(values, '__iter__'):
        return str(values)
    return separator.join(map(str, values)) or 'none'
