"""Trains, measures and writes the models that ship with the package: ``python -m benchmarks.zoo``.

It runs in a folder whose ``datasets/`` holds photos, Set5, Set14 and B100, as the recipes of ``options/fast/`` say, and
goes on after an interruption. Weights and cards go to ``pisr_plugin/zoo/``.
"""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save

from pisr_plugin.cli import common
from pisr_plugin.cli.test import main as test
from pisr_plugin.cli.train import main as train
from pisr_plugin.data.prepare.demo import HELD_OUT, photo_folder
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.card import Card, checksum, read_card, write_card
from pisr_plugin.inference.find_model import SHIPPED, list_models
from pisr_plugin.utils.errors import PISRError
from pisr_plugin.utils.files import write_whole

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'models.md'
BEGIN, END = '<!-- models -->', '<!-- end -->'
PROTOCOLS = ('basicsr', 'pisr')
LICENCE = {
    'weights': 'Apache-2.0',
    'data': 'T91 (Yang et al., 2010) and the training images of BSDS500 (Arbelaez et al., 2011), for research',
}
RUN = ('val:val_freq=5000', 'logger:use_tb_logger=false', 'logger:keep_checkpoints=1')


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: Its name.
        recipe: File of ``options/fast/`` without its suffix.
        changes: What differs from the recipe.
    """

    name: str
    recipe: str
    changes: tuple[str, ...] = ()


ENTRIES = (
    Entry('fsrcnn_x2', 'baseline_fsrcnn_x2'),
    Entry('fsrcnn_x3', 'baseline_fsrcnn_x3'),
    Entry('fsrcnn_x4', 'baseline_fsrcnn_x4'),
    Entry('rfdn_s_x2', 'baseline_rfdn_s_x2', ('train:total_iter=15000',)),
    Entry('rfdn_s_x4', 'baseline_rfdn_s_x4', ('train:total_iter=6000',)),
)


def build(entry: Entry, held_out: Path) -> Card:
    """Trains and measures a model, and writes it.

    Args:
        entry: The model.
        held_out: Folder with the held-out photos of the demo, on which a test measures the model again.

    Raises:
        PISRError: training or testing fails.
    """
    recipe = ROOT / f'options/fast/{entry.recipe}.yml'
    changes = ['--force_yml', *RUN, *entry.changes]
    _run(train, ['-opt', str(recipe), '--auto_resume', *changes])
    b100 = [
        'datasets:val_3={name: B100, type: PairedImageDataset, dataroot_gt: datasets/B100/HR, '
        'dataroot_lq: "datasets/B100/LR_bicubic/X${scale}", io_backend: {type: disk}, color: "${datasets.val.color}"}'
    ]
    for protocol in PROTOCOLS:
        _run(test, ['-opt', str(recipe), '--protocol', protocol, *changes, *b100])
    _run(test, ['-opt', str(recipe), '--protocol', 'basicsr', '--sets', f'heldout={held_out}', *changes])

    card = read_card(Path('experiments') / f'fast_{entry.recipe}' / 'student/models/net_g_latest.pth')
    SHIPPED.mkdir(exist_ok=True)
    target = SHIPPED / f'{entry.name}.safetensors'
    weights = checkpoint.load_weights(card.weights, card.param_key)
    write_whole(target, save({key: value.contiguous() for key, value in weights.items()}))
    trained = {**card.trained, 'recipe': f'fast/{entry.recipe}', 'changes': list(entry.changes), 'commit': _commit()}
    shipped = replace(card, weights=target, param_key='params', sha256=checksum(target), trained=trained)
    shipped = replace(shipped, licence=LICENCE)
    write_card(shipped)
    return shipped


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.zoo``."""
    parser = common.Parser(prog='python -m benchmarks.zoo', description='Train, measure and write the shipped models.')
    parser.add_argument('names', nargs='*', metavar='NAME', help='models to build (default: all)')
    args = parser.parse_args(argv)
    return common.run(lambda: build_all(args))


def build_all(args: argparse.Namespace) -> int:
    """Builds the models that the flags name; returns the exit code."""
    folder = photo_folder()
    held_out = Path('datasets/heldout')
    held_out.mkdir(parents=True, exist_ok=True)
    for name in HELD_OUT:
        (held_out / name).write_bytes((folder / name).read_bytes())
    for entry in ENTRIES:
        if not args.names or entry.name in args.names:
            card = build(entry, held_out)
            print(f'{card.weights}: {card.measured}')
    write_table()
    return 0


def write_table() -> None:
    """Puts the table of the shipped models into docs/models.md."""
    text = PAGE.read_text(encoding='utf-8')
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    write_whole(PAGE, f'{text[:start]}\n{table()}{text[end:]}')


def table() -> str:
    """Returns the shipped models as a Markdown table, from their cards."""
    sets = ('Set5', 'Set14', 'B100')
    headings = ['name', 'network', 'parameters', *sets, 'iterations', 'CPU s of training']
    lines = [f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
    for path in list_models().values():
        card = read_card(path)
        if card.weights.parent != SHIPPED:
            continue
        figures = [card.measured['basicsr'][name] for name in sets]
        cells = [f'`{card.name}`', f'{card.network["type"]}, {card.color}', f'{card.parameters:,}']
        cells += [f'{one["psnr"]:.2f} / {one["ssim"]:.4f}' for one in figures]
        cells += [f'{card.trained["iterations"]:,}', f'{card.trained["cpu_seconds"]:,.0f}']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _run(command, arguments: list[str]) -> None:
    if command(arguments):
        raise PISRError(f'{command.__module__} {" ".join(arguments)} failed.')


def _commit() -> str:
    done = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == '__main__':
    raise SystemExit(main())
