"""The demo set: colour photographs that come inside the scikit-image package, so nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import DataError
from .build import PairOptions, build

# A portrait and a cat: natural scenes of the kind that benchmarks show, which no training photo repeats.
HELD_OUT = ('astronaut.png', 'chelsea.png')

# All other colour photographs. The two motorcycles are one scene seen by two cameras, so both are on this side. Sky,
# tissue and eye are no everyday scenes, but real photographs with detail at every size, and everyday ones are few.
# Left out: the logo, drawings and charts (color, phantom, chessboards, horse, text) and gray pictures.
TRAIN = (
    'coffee.png',
    'hubble_deep_field.jpg',
    'ihc.png',
    'motorcycle_left.png',
    'motorcycle_right.png',
    'retina.jpg',
    'rocket.jpg',
)


def build_demo(root: Path, workers: int) -> bool:
    """Makes the demo set: ``train`` with LMDBs and ``heldout`` without, each as ``build`` lays it out.

    Args:
        root: Folder to make it in.
        workers: Most processes to use.

    Returns:
        False if everything was there already.

    Raises:
        DataError: scikit-image or one of its photos is not installed; as for ``build``.
    """
    folder = _photo_folder()
    # in pieces, because BasicSR decodes the whole image for every patch
    pieces = PairOptions(sub_images=72, step=72)
    train = build([folder / name for name in TRAIN], root / 'train', pieces, workers=workers)
    heldout = build([folder / name for name in HELD_OUT], root / 'heldout', PairOptions(), lmdb=(), workers=workers)
    return train or heldout


def _photo_folder() -> Path:
    """Where scikit-image keeps its photos; it is not imported, as its loaders may go to the network."""
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
