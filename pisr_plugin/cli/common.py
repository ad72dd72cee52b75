"""What all commands share: flags, exit codes, how they report mistakes."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pisr_plugin.utils.errors import CheckpointError, InstallError, OptionsError, PISRError
from pisr_plugin.version import __version__

if TYPE_CHECKING:
    from pisr_plugin.config.stages import Stage
    from pisr_plugin.inference.card import Card
    from pisr_plugin.inference.descriptor import ModelDescriptor

# Exit codes, beside 0 and argparse's 2.
SOME_FAILED = 1  # of several things to do; the others are done
MISTAKE = 2  # what the user asked for cannot be done; one message says why
UNEXPECTED = 70  # a mistake of this program; EX_SOFTWARE of sysexits.h
STOPPED = 130  # a signal ended the command; a run can be resumed
BROKEN_PIPE = 141  # as a shell reports SIGPIPE

RECIPE_HELP = 'recipe or resolved options file (YAML), or a name that pisr-list recipes shows'


class Parser(argparse.ArgumentParser):
    """Reads the arguments of a command.

    Flags may be written with dashes or underscores. Usage lines name the installed command, also when
    ``tools/train.py`` is run. ``--version`` is a flag of every command.
    """

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        command = Path(sys.argv[0]).stem.replace('_', '-').removeprefix('pisr-')
        super().__init__(prog or f'pisr-{command}', **options)
        self.add_argument('--version', action='version', version=f'pisr_plugin {__version__}')

    def parse_known_args(  # type: ignore[override]  # argparse's overloads allow for other kinds of namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, with each flag in the spelling that it was added with."""
        spellings = {flag.replace('_', '-'): flag for flag in self._option_string_actions if flag.startswith('--')}
        words = []
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition('=')
            words.append(spellings.get(flag.replace('_', '-'), flag) + equals + value)
        return super().parse_known_args(words, namespace)


def recipe_parser(description: str) -> Parser:
    """Returns a parser with the flags that every command on a recipe takes, named as in BasicSR.

    Args:
        description: What the command does, one sentence.
    """
    parser = Parser(description=description)
    add_recipe_flags(parser)
    return parser


def add_recipe_flags(parser: argparse._ActionsContainer, required: bool = True) -> None:
    """Adds the flags that choose and change a recipe.

    Args:
        parser: Gets the flags.
        required: Whether ``-opt`` must be given.
    """
    parser.add_argument('-opt', required=required, metavar='RECIPE', help=RECIPE_HELP)
    add_override_flag(parser)
    parser.add_argument('--stage', help='one stage of the recipe instead of all')
    add_plugin_flag(parser)


def add_override_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag that changes options of recipes."""
    parser.add_argument(
        '--force_yml',
        nargs='+',
        default=[],
        metavar='A:B=C',
        help='change options, e.g. train:total_iter=1000 network_g:num_feat=52',
    )


def add_network_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags that name a registered network and its arguments."""
    parser.add_argument('--type', metavar='NETWORK', help='a registered network, in place of a recipe')
    parser.add_argument(
        '--arg', nargs='+', default=[], metavar='NAME=VALUE', help='its arguments, e.g. num_feat=32 upscale=2'
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that :func:`load_named_model` reads: which network, of which scale."""
    parser.add_argument(
        '--model',
        metavar='MODEL',
        help='a name that `pisr-list models` shows, a file of weights, a run folder, or a recipe (file or name), whose '
        'last stage then counts',
    )
    parser.add_argument(
        '--scale', type=int, metavar='N', help="upscaling factor (default: the model's; without one, 2)"
    )
    group = parser.add_argument_group('networks that no card describes')
    add_recipe_flags(group, required=False)
    add_network_flags(group)
    group.add_argument('--weights', type=Path, metavar='FILE', help="checkpoint (default: the recipe's product)")
    group.add_argument('--param_key', help='weights wanted in it, such as params_ema')


def load_named_model(args: argparse.Namespace) -> ModelDescriptor:
    """Loads the network that the flags of :func:`add_model_flags` name, onto the GPU if there is one.

    Raises:
        PISRError: they name none, or two, or it cannot be loaded.
    """
    import torch

    from pisr_plugin.inference.descriptor import load_model
    from pisr_plugin.inference.find_model import default_model
    from pisr_plugin.utils.logging import quiet

    named = [flag for flag, value in (('--model', args.model), ('-opt', args.opt), ('--type', args.type)) if value]
    if len(named) > 1:
        raise OptionsError(f'{" and ".join(named)}: two ways to name a network. Expected one of them.')
    if args.arg and not args.type:
        raise OptionsError('--arg belongs to --type; with -opt use --force_yml network_g:A=B.')
    if args.model and _is_recipe(args.model):
        args.opt, args.model = args.model, None
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.opt or args.type:
        options, weights, param_key = _network_of_recipe(args) if args.opt else _network_of_type(args)
        with quiet():
            model = load_model(options, weights, param_key, device=device)
        if args.scale not in (None, model.scale):
            raise OptionsError(f'--scale {args.scale}: the network is for another scale. Expected {model.scale}.')
        return model
    for flag, value in (('--weights', args.weights), ('--param_key', args.param_key)):
        if value:
            raise OptionsError(f'{flag} belongs to -opt or --type. A file of weights alone: --model FILE')
    import_plugins(args.plugin)
    with quiet():
        return load_model(args.model or default_model(args.scale), scale=args.scale, device=device)


def find_card(name: str, scale: int | None = None) -> Card:
    """Finds a model by name, file, run folder or recipe.

    Args:
        name: What ``--model`` or an argument names.
        scale: Upscaling factor, for a file without a card.

    Raises:
        PISRError: there is no such model, or the recipe is not trained yet.
    """
    from pisr_plugin.config.plugins import read_recipe
    from pisr_plugin.config.stages import unroll
    from pisr_plugin.inference.find_model import find_model

    if not _is_recipe(name):
        return find_model(name, scale)
    stage = unroll(read_recipe(name, []))[-1]
    if not stage.checkpoint.is_file():
        raise CheckpointError(f'{stage.checkpoint} does not exist. Train first: pisr-train -opt {name}')
    return find_model(stage.checkpoint, scale or stage.options['scale'])


def _is_recipe(name: str) -> bool:
    """Whether ``--model`` names a recipe; a file, a folder or a model of this name goes first."""
    from pisr_plugin.config.recipes import recipe_names
    from pisr_plugin.inference.find_model import list_models

    if Path(name).suffix in ('.yml', '.yaml'):
        return True
    return not Path(name).exists() and name not in list_models() and name in recipe_names()


def _network_of_type(args: argparse.Namespace) -> tuple[dict, Path, str]:
    """Options, checkpoint and container of the network that ``--type`` names."""
    from pisr_plugin.config.schema import check_network

    if not args.weights:
        raise OptionsError(f'--type {args.type}: name its checkpoint too, --weights FILE.')
    import_plugins(args.plugin)
    options = network_options(args)
    check_network(options, '--type')
    return options, args.weights, args.param_key or 'params'


def _network_of_recipe(args: argparse.Namespace) -> tuple[dict, Path, str]:
    """Options, checkpoint and container of the network that a recipe's last stage, or ``--stage``, trains."""
    from pisr_plugin.engine.test import test_stage

    stage = test_stage(load_stage(args), named_options(args))
    path = stage.options['path']
    weights = args.weights or Path(path[f'pretrain_{stage.network}'])
    if not weights.is_file():
        raise CheckpointError(f'{weights} does not exist. Train first, or name a checkpoint: --weights FILE')
    key = args.param_key or ('params' if args.weights else path.get(f'param_key_{stage.network[-1]}', 'params'))
    return stage.options[stage.network], weights, key


def add_plugin_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag that :func:`import_plugins` reads."""
    parser.add_argument(
        '--plugin',
        action='append',
        default=[],
        metavar='MODULE',
        help='import this module first, for the networks and losses that it registers',
    )


def add_protocol_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that names one of :data:`pisr_plugin.evaluation.protocol.PROTOCOLS`."""
    parser.add_argument(
        '--protocol',
        help="how to measure: y_plane, rgb8, pisr, basicsr, rgb (default: the recipe's val.protocol, else basicsr)",
    )


def add_crop_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that chooses the part of an image to show; see :func:`pisr_plugin.report.images.crop_of`."""
    parser.add_argument(
        '--crop',
        type=int,
        nargs=3,
        metavar=('X', 'Y', 'SIZE'),
        help='the part to show, in HR pixels (default: 96 pixels where the gain is largest)',
    )


def network_options(args: argparse.Namespace) -> dict:
    """Returns the options of the network that the flags of :func:`add_network_flags` name."""
    from pisr_plugin.config.compose import override

    return override({'type': args.type}, args.arg, '--arg')


@contextmanager
def results_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill, which then takes the place of ``folder``; prints where an earlier one was moved to."""
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.utils.files import replacing_folder

    make_folder(folder.parent)
    with replacing_folder(folder) as (unfinished, archive):
        yield unfinished
    if archive.exists():
        print(f'The earlier results were moved to {archive}')


def load_recipe(args: argparse.Namespace) -> dict:
    """Imports the plugins and returns the recipe that the flags of :func:`recipe_parser` describe."""
    from pisr_plugin.config.plugins import read_recipe

    import_plugins(args.plugin)
    return read_recipe(args.opt, args.force_yml)


def load_stage(args: argparse.Namespace) -> Stage:
    """Returns the stage of the recipe that ``--stage`` names, else the last one, its options checked."""
    from pisr_plugin.config.schema import check_options
    from pisr_plugin.config.stages import select, unroll

    stages = unroll(load_recipe(args))
    [stage] = select(stages, args.stage or stages[-1].name)
    check_options(stage.options, stage.option_path)
    return stage


def named_options(args: argparse.Namespace) -> set[str]:
    """Returns the option paths that ``--force_yml`` sets, written with dots."""
    return {entry.partition('=')[0].replace(':', '.') for entry in args.force_yml}


def import_plugins(names: list[str]) -> None:
    """Imports what ``--plugin`` names, and the plugins of installed packages."""
    from pisr_plugin.config import plugins

    plugins.import_plugins(names, '--plugin')


def require(what: str, packages: Iterable[str], extra: str = '') -> None:
    """Makes sure that packages of an extra of setup.py are there.

    Args:
        what: What needs them, for the message.
        packages: Their names.
        extra: The extra that brings them, for the message; by default it names the packages.

    Raises:
        InstallError: Some are not installed.
    """
    missing = [package for package in packages if not find_spec(package)]
    if missing:
        names = ' '.join(missing)
        found, install = (f' ({names})', f"'pisr-plugin[{extra}]'") if extra else ('', names)
        raise InstallError(f'{what} needs what is not installed{found}: pip install {install}')


def run(command: Callable[[], int | None]) -> int:
    """Runs a command. No exception leaves it: each becomes one message and an exit code.

    Args:
        command: Does the work and returns an exit code; None is 0.
    """
    try:
        import pisr_plugin.compat  # noqa: F401  (pisr_command.py: now the package registers everything)

        code = command() or 0
        sys.stdout.flush()
        return code
    except PISRError as error:
        if str(error):  # else another rank prints it
            _print_error(str(error))
        return MISTAKE
    except BrokenPipeError:  # such as `pisr-list schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        return BROKEN_PIPE
    except OSError as error:  # a full disk, a folder without permission
        _print_error(f'{error.filename or "writing"}: {error.strerror or error}')
        return MISTAKE
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        _print_error(
            f'unexpected {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ""}\n'
            f'This is a mistake in pisr_plugin, or in a plugin. Please send {_write_log()} to its authors.'
        )
        return UNEXPECTED
    finally:
        atexit.unregister(_ignore_interrupts)
        atexit.register(_ignore_interrupts)  # Python calls what is registered last first


def _ignore_interrupts() -> None:
    """Ctrl-C while Python cleans up behind a command would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _print_error(text: str) -> None:
    print(f'error: {text}', file=sys.stderr)


def _write_log() -> Path | str:
    """Writes the traceback of the exception in hand to a file; returns the file, or the traceback if none can be."""
    text = f'pisr_plugin {__version__}, Python {sys.version}\n{sys.argv}\n{traceback.format_exc()}'
    name = f'pisr-error-{time.strftime("%Y%m%d-%H%M%S")}-{os.getpid()}.log'
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            (folder / name).write_text(text, encoding='utf-8', errors='replace')
            return folder / name
        except OSError:
            continue
    return f'this:\n{text}'
