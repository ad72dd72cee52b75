"""Write a trained network as ONNX, OpenVINO IR, .pt2 or safetensors, or as a web page that upscales photos.

``pisr-export fsrcnn_x2 -o exported --format onnx openvino``, ``pisr-export fsrcnn_x2 rfdn_s_x2 --web page``
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.files import name_as_folder

if TYPE_CHECKING:
    from pisr_plugin.inference.card import Card
    from pisr_plugin.inference.descriptor import ModelDescriptor

# of each format: the packages it needs, and the extra of setup.py that brings them
PACKAGES = {
    'onnx': (('onnx', 'onnxruntime', 'onnxscript'), 'onnx'),
    'openvino': (('onnx', 'onnxruntime', 'onnxscript', 'openvino'), 'openvino'),
    'pt2': ((), ''),
    'safetensors': ((), ''),
}


def main(argv: list[str] | None = None) -> int:
    """Command line of ``pisr-export`` and ``tools/export.py``."""
    parser = common.Parser(description='Write a trained network for other programs, or as a web page.')
    parser.add_argument('models', nargs='+', metavar='MODEL', help='name, weights file, run folder or recipe')
    parser.add_argument('-o', '--output', type=Path, default=Path(), metavar='DIR', help='folder for the files')
    parser.add_argument('--format', nargs='+', choices=PACKAGES, metavar='FORMAT', help=f'{", ".join(PACKAGES)}')
    parser.add_argument('--name', help="name of the files without suffix (default: the model's)")
    parser.add_argument('--web', type=Path, metavar='DIR', help='write a page there that upscales in the browser')
    parser.add_argument(
        '--ort', type=Path, metavar='FOLDER', help="onnxruntime-web's files (default: npm fetches them)"
    )
    parser.add_argument('--scale', type=int, help='scale of a weights file without a card')
    precision = parser.add_mutually_exclusive_group()
    for name, text in (
        ('fp16', 'weights and features in 16 bits'),
        ('int8', 'weights and features in 8 bits; needs --calibration'),
        ('int8-weights', 'weights in 8 bits, features in 32'),
    ):
        precision.add_argument(f'--{name}', dest='precision', action='store_const', const=name, help=text)
    parser.add_argument('--calibration', type=Path, metavar='FOLDER', help='photos by which int8 finds its ranges')
    parser.add_argument('--photos', type=Path, metavar='FOLDER', help='compare on these (default: on drawn images)')
    parser.add_argument('--tolerance', type=float, metavar='LEVELS', help='largest difference allowed, of 255')
    parser.add_argument('--max_loss', type=float, metavar='DB', help='largest loss of PSNR allowed')
    parser.add_argument('--opset', type=int, default=18, metavar='N', help="ONNX's operator set (default: 18)")
    common.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return common.run(lambda: export(args))


def export(args: argparse.Namespace) -> int:
    """Writes what the flags ask for; returns the exit code."""
    formats = args.format or ([] if args.web else ['onnx'])
    for name in [*formats, *(['onnx'] if args.web else [])]:
        packages, extra = PACKAGES[name]
        common.require(f'--format {name}', packages, extra)
    if (args.precision == 'int8') != bool(args.calibration):
        raise OptionsError('--int8 and --calibration belong together: int8 finds its ranges by photos. Expected both.')
    if args.ort and not args.web:
        raise OptionsError(f'--ort {args.ort}: belongs to --web DIR.')
    common.import_plugins(args.plugin)
    cards = find_models(args)
    for name, card in cards.items():
        if formats:
            write_files(args, name, card, formats, args.output)
    if args.web:
        write_web(args, cards)
    return 0


def write_web(args: argparse.Namespace, cards: dict[str, Card]) -> None:
    """Writes the page with all models, and prints how to serve it."""
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.export import web

    web.check_folder(args.web)
    make_folder(args.web.absolute().parent)
    with tempfile.TemporaryDirectory(prefix='.export_', dir=args.web.absolute().parent) as folder:
        exported, models = {}, []
        for name, card in cards.items():
            model, paths = write_files(args, name, card, ['onnx'], Path(folder))
            file = f'models/{paths[0].name}'
            exported[file] = paths[0]
            models.append(web.describe(model, card, name, file))
        web.write_page(args.web.absolute(), exported, models, args.ort)
    print(f'{args.web}: a page for {", ".join(cards)}. Serve it: python -m http.server -d {args.web} --bind 127.0.0.1')


def find_models(args: argparse.Namespace) -> dict[str, Card]:
    """Returns the cards of the models that the flags name, by the name of their files."""
    if args.name is not None:
        name_as_folder(args.name, '--name')
    if args.name and len(args.models) > 1:
        raise OptionsError(f'--name {args.name}: names one model (found {len(args.models)}).')
    cards: dict[str, Card] = {}
    for model in args.models:
        card = common.find_card(model, args.scale)
        name = args.name or (card.name if card.name in (model, Path(model).stem) else Path(model).resolve().stem)
        if name in cards:
            raise OptionsError(f'{model}: a second model of the name {name}. Export it alone, with --name.')
        cards[name] = card
    return cards


def write_files(
    args: argparse.Namespace, name: str, card: Card, formats: list[str], folder: Path
) -> tuple[ModelDescriptor, list[Path]]:
    """Writes one model in some formats and prints how each file compares with PyTorch; returns it and the files."""
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.export.check import samples
    from pisr_plugin.export.formats import LIMITS, Exporter
    from pisr_plugin.inference.descriptor import load_model
    from pisr_plugin.utils.logging import quiet

    make_folder(folder)
    precision = args.precision or 'fp32'
    changes = {'difference': args.tolerance, 'loss': args.max_loss}
    limits = replace(LIMITS[precision], **{key: value for key, value in changes.items() if value is not None})
    with quiet():
        model = load_model(card.weights, scale=card.scale)
    calibration = [pair.lq for pair in samples(args.calibration, card, 32)] if precision == 'int8' else []
    exporter = Exporter(model, card, precision, args.opset, calibration)
    paths = []
    for path, found in exporter.export(formats, folder, samples(args.photos, card), limits, name):
        paths.append(path)
        print(
            f'{path if folder == args.output else path.name}: largest difference {found.difference:.3g} of 255, '
            f'PSNR {found.psnr:.2f} dB ({-found.loss:+.3f}), {1000 * found.seconds:.1f} ms, '
            f'{found.speed:.2f} times as fast as PyTorch'
        )
    return model, paths
