"""Upscale photos with a trained network.

``pisr-upscale photo.jpg``
``pisr-upscale photo.jpg holiday --scale 4 -o larger``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import DataError, OptionsError, first_line
from pisr_plugin.utils.files import name_as_folder
from pisr_plugin.utils.logging import notice

if TYPE_CHECKING:
    from pisr_plugin.data.storage.photo_files import Format
    from pisr_plugin.inference.descriptor import ModelDescriptor

FORMATS = ('png', 'jpg', 'webp', 'tiff', 'avif', 'same')
LARGE = 2_000_000  # pixels of a photo that takes gigabytes if it is computed at once

RULES = """
where the results go:
  photo.jpg                        photo_x2.png beside it
  photo.jpg -o larger              larger/photo_x2.png
  photo.jpg -o larger.webp         that file
  holiday (a folder)               holiday_x2/..., with its subfolders
  holiday -o larger                larger/..., with its subfolders
A result that exists is skipped, unless --overwrite is given.
"""


def main(argv: list[str] | None = None) -> int:
    """Command line of ``pisr-upscale`` and ``tools/upscale.py``."""
    parser = common.Parser(
        description='Upscale photos with a trained network.',
        epilog=RULES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('photos', nargs='+', type=Path, metavar='PHOTO', help='image files, or folders of them')
    parser.add_argument('-o', '--output', type=Path, metavar='PATH', help='folder for the results; or a file, for one')
    common.add_model_flags(parser)
    parser.add_argument('--format', choices=FORMATS, help="of the results (default: png); same: as each photo's")
    parser.add_argument('--suffix', metavar='TEXT', help="end of the results' names (default: _x2, with the scale)")
    parser.add_argument('--quality', type=int, metavar='1-100', help='of jpg, webp and avif (default: 95)')
    parser.add_argument('--overwrite', action='store_true', help='replace results that exist')
    parser.add_argument(
        '--strips', type=int, metavar='ROWS', help='rows to compute at a time (default: as memory needs)'
    )
    parser.add_argument('--compile', action='store_true', help='use torch.compile: pays for many photos')
    args = parser.parse_args(argv)
    return common.run(lambda: upscale(args))


def upscale(args: argparse.Namespace) -> int:
    """Upscales the photos that the flags name; returns the exit code."""
    from pisr_plugin.inference.predict import optimized
    from pisr_plugin.inference.tiles import check_strips

    if args.strips is not None and args.strips < 1:
        raise OptionsError(f'--strips {args.strips}: a number of rows from 1 on is needed.')
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise OptionsError(f'--quality {args.quality}: expected a number from 1 to 100.')
    if args.suffix:
        name_as_folder(args.suffix, '--suffix')
    for photo in args.photos:
        if not photo.exists():
            raise DataError(f'{photo}: no such file.')
    model = common.load_named_model(args)
    if args.strips:
        check_strips(model)
    jobs = find_results(args.photos, args.output, model.scale, args.format, args.suffix)
    if args.compile:
        assert model.net is not None  # bicubic interpolation alone has none
        model.net = optimized(model.net, compile=True)
    done, failed = 0, []
    waiting = {photo: result for photo, result in jobs.items() if args.overwrite or not result.exists()}
    if args.overwrite:
        _protect_photos(waiting)
    for photo, result in waiting.items():
        try:
            _upscale_photo(model, photo, result, args)
            done += 1
        except DataError as error:
            if len(jobs) == 1:
                raise
            notice(f'failed: {error}')
            failed.append(photo)
    skipped = len(jobs) - len(waiting)
    if skipped == 1:
        [result] = set(jobs.values()) - set(waiting.values())
        print(f'{result} exists, so it was skipped. --overwrite replaces it.')
    elif skipped:
        print(f'{skipped} results exist, so they were skipped. --overwrite replaces them.')
    if failed:
        print(f'{done} of {len(waiting)} photos upscaled. These failed:', *failed, sep='\n  ')
    return common.SOME_FAILED if failed else 0


def find_results(
    photos: list[Path], output: Path | None, scale: int, file_format: str | None, suffix: str | None
) -> dict[Path, Path]:
    """Returns where the result for each photo will be, by the rules that ``--help`` shows.

    Args:
        photos: Image files, or folders of them.
        output: What ``-o`` names, if anything.
        scale: Upscaling factor.
        file_format: What ``--format`` names, if anything.
        suffix: What ``--suffix`` names, if anything.

    Raises:
        DataError: a folder has no photos, or two photos would have the same result.
        OptionsError: ``output`` is a file and does not fit the other flags.
    """
    from pisr_plugin.data.storage.photo_files import FORMATS as BY_SUFFIX

    if output is not None and output.suffix.lower().lstrip('.') in BY_SUFFIX and not output.is_dir():
        if len(photos) > 1 or photos[0].is_dir():
            raise OptionsError(f'-o {output}: names a file, for one photo. Expected a folder.')
        if suffix is not None:
            raise OptionsError(f'-o {output}: is a file, so --suffix {suffix!r} has no meaning. Expected a folder.')
        if file_format is not None and _format_of(output) is not BY_SUFFIX.get(file_format):
            raise OptionsError(f'-o {output}: another format than --format {file_format}.')
        return {photos[0]: output}
    end = f'_x{scale}' if suffix is None else suffix
    results: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for named in photos:
        if named.is_dir():
            root = named.resolve()
            folder = output or root.with_name(f'{root.name}_x{scale}')
            if folder.resolve() == root:
                raise OptionsError(f'-o {output}: is the folder of the photos. Expected another one.')
            files = {file: folder / file.parent.relative_to(named) for file in _photos_below(named, folder)}
        else:
            files = {named: output or named.parent}
        for photo, place in files.items():
            ending = f'.{file_format or "png"}'
            if file_format == 'same':
                ending = photo.suffix if _format_of(photo) else '.png'
            result = place / f'{photo.stem}{end}{ending}'
            if owners.setdefault(result, photo) != photo:
                raise DataError(
                    f'{owners[result]} and {photo}: both would become {result}. Expected --format same, or two calls '
                    'with two folders after -o.'
                )
            results[photo] = result
    return results


def _format_of(path: Path) -> Format | None:
    from pisr_plugin.data.storage.photo_files import FORMATS as BY_SUFFIX

    return BY_SUFFIX.get(path.suffix.lower().lstrip('.'))


def _photos_below(folder: Path, results: Path) -> list[Path]:
    """Lists the photos of a folder and its subfolders, without hidden ones and those below ``results``."""
    from pisr_plugin.data.storage.photo_files import PHOTO_SUFFIXES

    inside = folder.resolve() in results.resolve().parents
    found = [
        path
        for path in sorted(folder.rglob('*'))
        if path.suffix.lower() in PHOTO_SUFFIXES
        and not any(part.startswith('.') for part in path.relative_to(folder).parts)
        and not (inside and results.resolve() in path.resolve().parents)
        and path.is_file()
    ]
    if not found:
        raise DataError(f'{folder}: no photos. Expected files that end in {", ".join(PHOTO_SUFFIXES)}.')
    return found


def _protect_photos(jobs: dict[Path, Path]) -> None:
    """Raises a DataError if a result would replace a photo."""
    sources = {photo.resolve() for photo in jobs}
    for result in jobs.values():
        if result.resolve() in sources:
            raise DataError(f'{result} would take the place of a photo to upscale. Name another folder: -o FOLDER')


def _upscale_photo(model: ModelDescriptor, photo: Path, result: Path, args: argparse.Namespace) -> None:
    """Upscales one photo tile by tile and writes the result.

    Raises:
        DataError: the photo cannot be read, or its format cannot hold the result.
    """
    import torch
    from tqdm import tqdm

    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.data.storage.photo_files import check_size, read_photo
    from pisr_plugin.data.storage.photo_writer import write_photo
    from pisr_plugin.inference.tiles import split, upscale_bands

    start = time.monotonic()
    file_format = _format_of(result)
    assert file_format is not None  # by find_results
    small = read_photo(photo, file_format)
    height, width = small.size
    check_size(photo, (height * model.scale, width * model.scale), file_format)
    tiles = split(model, height, width, args.strips)
    if len(tiles) == 1 and height * width > LARGE:
        notice(
            f'{photo}: the output of {model.name} depends on the whole image, so these {width}x{height} pixels are '
            'computed at once, which takes gigabytes of memory.'
        )
    make_folder(result.parent)
    # the bar appears on a terminal only, and only for work that takes a while
    bands = upscale_bands(model, small, tqdm(tiles, photo.name, leave=False, delay=1, disable=None, unit='tile'))
    try:
        write_photo(result, bands, small, model.scale, file_format, args.quality or 95)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DataError(f'{photo}: too large for the memory ({first_line(error)})') from None
    size = f'{width}x{height} to {width * model.scale}x{height * model.scale}'
    print(f'{result}: {size} in {time.monotonic() - start:.1f} s', flush=True)
