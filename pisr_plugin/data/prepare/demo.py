"""The demo set: photographs that come inside the scikit-image package, so nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pisr_plugin.data.prepare.build import PairOptions, build
from pisr_plugin.utils.errors import DataError

# A portrait and a cat: natural scenes like those of the benchmarks; no training photo repeats them.
HELD_OUT = ('astronaut.png', 'chelsea.png')

# All other photographs, gray ones too, as training is on luminance. The two motorcycles are one scene seen by two
# cameras, so both are on this side. Sky, tissue and eye are no everyday scenes, but real photographs with detail at
# every size, and everyday ones are few. Left out: the logo, drawings, charts and pages (color, phantom, chessboards,
# horse, text, page) and pictures of a single object (cell, clock).
TRAIN = (
    'brick.png',
    'camera.png',
    'coffee.png',
    'coins.png',
    'grass.png',
    'gravel.png',
    'hubble_deep_field.jpg',
    'ihc.png',
    'moon.png',
    'motorcycle_left.png',
    'motorcycle_right.png',
    'retina.jpg',
    'rocket.jpg',
)


def build_demo(root: Path, workers: int) -> bool:
    """Makes the demo set: ``train`` with LMDBs and ``heldout`` without, each in the layout of ``build``.

    Args:
        root: Folder of the demo set.
        workers: Largest number of processes, at least 1.

    Returns:
        False if everything was there already.

    Raises:
        DataError: scikit-image or one of its photos is not installed, or ``build`` raises.
    """
    folder = photo_folder()
    # in sub-images, because BasicSR decodes the whole image for every patch
    pieces = PairOptions(sub_images=72, step=72)
    train = build([folder / name for name in TRAIN], root / 'train', pieces, workers=workers)
    heldout = build([folder / name for name in HELD_OUT], root / 'heldout', PairOptions(), lmdb=(), workers=workers)
    return train or heldout


def photo_folder() -> Path:
    """Returns the folder of scikit-image's photos, without importing it, because its loaders may use the network."""
    spec = importlib.util.find_spec('skimage')
    if spec is None or spec.origin is None:
        raise DataError(
            'scikit-image is not installed; its photos are the demo set. Install it: pip install scikit-image'
        )
    folder = Path(spec.origin).parent / 'data'
    missing = [name for name in (*TRAIN, *HELD_OUT) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f'{folder}: this scikit-image comes without {", ".join(missing)}. Install another: '
            f"pip install 'scikit-image>=0.22'"
        )
    return folder
