"""Finds recipes and grids: a file, or the name of one that comes with the package."""

from __future__ import annotations

from pathlib import Path, PurePath

from pisr_plugin.utils.errors import OptionsError, close_matches, shown

_PACKAGE = Path(__file__).parents[1]
# An installed package holds the folder, in a checkout it lies beside the package.
OPTIONS = next(
    (folder for folder in (_PACKAGE / 'options', _PACKAGE.parent / 'options') if (folder / 'schema.json').is_file()),
    _PACKAGE / 'options',
)
_SUFFIXES = ('.yml', '.yaml')


def recipe_names() -> list[str]:
    """Returns the names of the package's recipes and grids, such as ``fast/pisr_fsrcnn_x2``, without their bases."""
    files = (path.relative_to(OPTIONS).with_suffix('') for path in OPTIONS.rglob('*.yml'))
    return sorted(file.as_posix() for file in files if not any(part.startswith('_') for part in file.parts))


def find_recipe(name: str | Path, folder: Path = Path(), option_path: str = '') -> Path:
    """Returns the file that a recipe's or grid's name stands for.

    A file wins. Else the name is looked up among the package's recipes: ``pisr_fsrcnn_x2``, ``pisr_fsrcnn_x2.yml``
    and ``options/pisr_fsrcnn_x2.yml`` are the same one.

    Args:
        name: Path of a file, or name of a recipe of the package.
        folder: Folder that a relative path starts from.
        option_path: Where the name stands, for messages; empty: on the command line.

    Raises:
        OptionsError: there is neither such a file nor such a recipe.
    """
    path = folder / name
    place = f'{option_path}: {path}' if option_path else f'{path}:'
    try:
        if path.is_file():
            return path
        inside = PurePath(name)
        inside = inside.relative_to('options') if inside.parts[:1] == ('options',) else inside
        inside = inside.with_suffix('') if inside.suffix in _SUFFIXES else inside
        own = OPTIONS / f'{inside}.yml'
        if not inside.is_absolute() and '..' not in inside.parts and own.is_file():
            return own
        if path.exists():
            raise OptionsError(f'{place} is not a file. Expected a YAML file.')
        files = [file.name for file in path.parent.glob('*.y*ml')] if path.parent.is_dir() else []
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a NUL, a circle of links
        raise OptionsError(f'{shown(place)}: not a file name ({getattr(error, "strerror", error)})') from None
    near = [*close_matches(path.name, files), *close_matches(inside.as_posix(), recipe_names())]
    question = f'Did you mean {" or ".join(map(repr, near))}? ' if near else ''
    raise OptionsError(
        f'{place} does not exist, nor does a recipe of that name. {question}pisr-list recipes shows the names.'
    )
