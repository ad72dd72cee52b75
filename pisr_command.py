"""Starts a command: ``pisr-train`` and ``tools/train.py`` are ``pisr_plugin.cli.train``.

Importing pisr_plugin imports torch and BasicSR and registers everything with it, which takes seconds. A command reads
its arguments first: here ``pisr_plugin/__init__.py`` runs no sooner than a module that needs it is imported. So --help
answers at once, and a signal that comes early ends the command without a traceback.
"""

import importlib
import importlib.util
import signal
import sys
from pathlib import Path

_LIGHT = ('cli', 'utils', 'version')  # these import neither BasicSR nor modules that do, unless they are asked to


class _Deferred:
    """Import hook that runs ``pisr_plugin/__init__.py`` before the first module of the package that is not light."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec('pisr_plugin')
        assert spec and spec.loader  # the package is installed with this file
        self.loader = spec.loader
        self.package = sys.modules['pisr_plugin'] = importlib.util.module_from_spec(spec)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Finds nothing itself."""
        package, _, module = name.partition('.')
        if package == 'pisr_plugin' and module.partition('.')[0] not in _LIGHT:
            sys.meta_path.remove(self)
            self.loader.exec_module(self.package)


def main() -> int:
    """Runs the command that the process is named after; returns its exit code."""
    for name in ('SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'):  # until the command handles them
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    command = Path(sys.argv[0]).stem.removeprefix('pisr-').replace('-', '_')
    try:
        if 'pisr_plugin' not in sys.modules:
            sys.meta_path.insert(0, _Deferred())
        return importlib.import_module(f'pisr_plugin.cli.{command}').main()
    except KeyboardInterrupt:
        return 130
