"""Upscale photos with a trained network.

``pisr-upscale photo.jpg holidays/ -opt options/pisr_fsrcnn_x2.yml -o larger``
``pisr-upscale photo.jpg --type FSRCNN --arg upscale=2 --weights net_g_latest.pth -o larger``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import CheckpointError, DataError, OptionsError
from pisr_plugin.utils.logging import quiet


def main(argv: list[str] | None = None) -> int:
    """Command line of ``pisr-upscale`` and ``tools/upscale.py``."""
    parser = common.Parser(description='Upscale photos with a trained network.')
    parser.add_argument('photos', nargs='+', type=Path, metavar='PHOTO', help='image files, or folders of them')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='DIR', help='folder for the results (PNG)')
    common.add_recipe_flags(parser, required=False)
    parser.add_argument('--type', metavar='NETWORK', help='a registered network, in place of a recipe')
    parser.add_argument('--arg', nargs='+', default=[], metavar='NAME=VALUE', help='its arguments')
    parser.add_argument('--weights', type=Path, metavar='FILE', help="checkpoint (default: the recipe's product)")
    parser.add_argument('--param_key', help='weights wanted in it, such as params_ema')
    parser.add_argument('--strips', type=int, metavar='ROWS', help='compute so many rows at a time, to save memory')
    parser.add_argument('--compile', action='store_true', help='use torch.compile: pays for many photos')
    args = parser.parse_args(argv)
    return common.run(lambda: upscale(args))


def upscale(args: argparse.Namespace) -> int:
    """Upscales the photos that the flags name; returns the exit code."""
    import torch

    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.data.storage.image_files import read_rgb, write_png
    from pisr_plugin.inference.descriptor import load_model
    from pisr_plugin.inference.predict import find_tile_pad, optimized, upscale_rgb
    from pisr_plugin.utils.devices import precision

    if args.strips is not None and args.strips < 1:
        raise OptionsError(f'--strips {args.strips}: a number of rows from 1 on is needed.')
    results = outputs(args.photos, args.output)
    options, weights, param_key = _network(args)
    with quiet():
        model = load_model(options, weights, param_key, device='cuda' if torch.cuda.is_available() else 'cpu')
    assert model.net is not None  # bicubic interpolation alone has none
    tile_pad = None
    if args.strips:
        tile_pad = find_tile_pad(model.net, torch.zeros(1, model.channels, 1, 1, device=model.device), model.window)
    net = optimized(model.net, compile=args.compile)
    make_folder(args.output)
    for photo, result in results.items():
        rgb = torch.from_numpy(read_rgb(photo).copy()).permute(2, 0, 1) / 255
        tiles = {'tile_rows': args.strips, 'tile_pad': tile_pad}
        with precision(tf32=False):  # so that strips give the pixels of the whole image
            sr = upscale_rgb(net, rgb, on_y=model.channels == 1, window=model.window, **tiles)
        write_png(result, (sr * 255).round().byte().permute(1, 2, 0).numpy())
        print(f'{result}: {rgb.shape[2]}x{rgb.shape[1]} to {sr.shape[2]}x{sr.shape[1]}')
    return 0


def outputs(photos: list[Path], folder: Path) -> dict[Path, Path]:
    """Where the result for each photo will be: under its name as PNG in ``folder``.

    Args:
        photos: Image files, or folders of them.
        folder: For the results.

    Raises:
        DataError: a photo is missing, two have the same name, or a result would overwrite a photo.
    """
    from pisr_plugin.data.storage.image_files import list_images

    files = [file for photo in photos for file in (list_images(photo) if photo.is_dir() else [photo])]
    results: dict[Path, Path] = {}
    for file in files:
        if not file.is_file():
            raise DataError(f'{file}: no such file.')
        result = folder / f'{file.stem}.png'
        if result in results.values():
            twin = next(other for other, taken in results.items() if taken == result)
            raise DataError(f'{twin} and {file}: both would become {result}; upscale them one by one, to two folders.')
        results[file] = result
    sources = {file.resolve() for file in files}
    for result in results.values():
        if result.resolve() in sources:
            raise DataError(f'-o {folder}: {result} would take the place of a photo to upscale; name another folder.')
    return results


def _network(args: argparse.Namespace) -> tuple[dict, str | Path, str]:
    """Options, checkpoint and container of the network that the flags describe."""
    from pisr_plugin.config.compose import override
    from pisr_plugin.config.schema import check_network
    from pisr_plugin.engine.test import test_stage

    if bool(args.type) == bool(args.opt):
        raise OptionsError('give either a recipe, -opt RECIPE, or a network, --type NAME --arg ... --weights FILE.')
    if args.type:
        if not args.weights:
            raise OptionsError(f'--type {args.type}: name its checkpoint too, --weights FILE.')
        common.import_plugins(args.plugin)
        options = override({'type': args.type}, args.arg, '--arg')
        check_network(options, '--type')
        return options, args.weights, args.param_key or 'params'
    if args.arg:
        raise OptionsError('--arg belongs to --type; with -opt use --force_yml network_g:A=B.')
    stage = test_stage(common.load_stage(args), common.named_options(args))
    path = stage.options['path']
    weights = args.weights or Path(path[f'pretrain_{stage.network}'])
    if not weights.is_file():
        raise CheckpointError(f'{weights} does not exist. Train first, or name a checkpoint: --weights FILE')
    key = args.param_key or ('params' if args.weights else path.get(f'param_key_{stage.network[-1]}', 'params'))
    return stage.options[stage.network], weights, key
