"""What all commands share: quick help, spellings of flags, exit codes."""

import re
import signal
import subprocess
import sys
import time

import pytest

from pisr_plugin.cli import common, complexity, picture, prepare_data, test
from pisr_plugin.data.prepare.build import LMDBS
from pisr_plugin.evaluation.complexity import CONVENTIONS
from pisr_plugin.evaluation.protocol import PROTOCOLS
from pisr_plugin.utils.errors import DataError
from tests.conftest import ROOT
from tests.processes import start, start_fresh

COMMANDS = sorted({path.stem for path in (ROOT / 'pisr_plugin/cli').glob('*.py')} - {'__init__', 'common'})
# runs a command as its script does, and prints the heavy packages that it imported
HEAVY = """
import sys
import pisr_command
sys.argv[0] = 'pisr-{command}'
try:
    pisr_command.main()
except SystemExit:
    pass
print(sorted({{'torch', 'basicsr', 'numpy', 'cv2', 'matplotlib'}} & set(sys.modules)))
"""


@pytest.mark.parametrize('flag', ['--help', '--version'])
@pytest.mark.parametrize('command', COMMANDS)
def test_help_imports_nothing_heavy(command, flag, tmp_path):
    process = start_fresh('-c', HEAVY.format(command=command), flag, cwd=tmp_path)
    output, _ = process.communicate()
    assert output.splitlines()[-1] == '[]', output
    name = command.replace('_', '-')
    assert output.startswith(f'usage: pisr-{name} ' if flag == '--help' else 'pisr_plugin ')


@pytest.mark.parametrize(
    'main, arguments, names',
    [
        (test.main, [], PROTOCOLS),
        (picture.main, [], PROTOCOLS),
        (complexity.main, [], CONVENTIONS),
        (prepare_data.main, ['build'], LMDBS),
    ],
)
def test_help_names_what_can_be_chosen(main, arguments, names, capsys):
    """The commands list the names themselves, because the tables that define them are heavy to import."""
    with pytest.raises(SystemExit):
        main([*arguments, '--help'])
    assert ' '.join(names) in ' '.join(re.findall(r'\w+', capsys.readouterr().out))


def test_every_tool_is_an_installed_command():
    tools = {path.stem for path in (ROOT / 'tools').glob('*.py')}
    setup = (ROOT / 'setup.py').read_text()
    assert tools == set(COMMANDS)
    assert all(f"'pisr-{name.replace('_', '-')} = pisr_command:main'" in setup for name in tools)


def test_a_command_registers_everything_with_basicsr(tmp_path):
    """The plugin of a user imports BasicSR before anything else."""
    (tmp_path / 'mine.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\nassert "PITeacher" in ARCH_REGISTRY\n'
    )
    process = start(ROOT / 'tools/list.py', 'networks', '--plugin', 'mine', cwd=tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0 and 'FSRCNN' in output, output


def test_flags_take_dashes_and_underscores():
    parser = common.recipe_parser('A command.')
    parser.add_argument('--dry-run', action='store_true')
    for words in (['--force_yml', 'a=1', '--dry_run'], ['--force-yml', 'a=1', '--dry-run']):
        args = parser.parse_args(['-opt', 'x_y-z.yml', *words])
        assert (args.opt, args.force_yml, args.dry_run) == ('x_y-z.yml', ['a=1'], True)
    nested = common.Parser()
    nested.add_subparsers(dest='what').add_parser('one').add_argument('--a_b')
    assert nested.parse_args(['one', '--a-b=c_d-e']).a_b == 'c_d-e'


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize(
    'error, code, told',
    [
        (DataError('x.png: no such file.'), 2, 'error: x.png: no such file.\n'),
        (DataError(''), 2, ''),
        (OSError(28, 'No space left on device', 'x.pth'), 2, 'error: x.pth: No space left on device\n'),
        (KeyboardInterrupt(), 130, ''),
    ],
)
def test_what_a_command_raises_is_one_message(error, code, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert common.run(lambda: _raise(error)) == code
    assert capsys.readouterr().err == told and not list(tmp_path.iterdir())


def test_an_interrupt_while_python_ends_prints_nothing():
    code = (
        'import atexit, os, signal, time\n'
        'atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1)))\n'
        'from pisr_plugin.cli import common\n'
        'raise SystemExit(common.run(lambda: 0))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize('error', [ZeroDivisionError('on\npurpose'), RecursionError(), KeyError('x'), AssertionError()])
def test_an_unexpected_exception_is_a_message_and_a_log(error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert common.run(lambda: _raise(error)) == 70
    (log,) = tmp_path.iterdir()
    told = capsys.readouterr().err
    assert told.startswith(f'error: unexpected {type(error).__name__}: ') and str(log) in told
    assert 'Traceback' not in told and 'Traceback' in log.read_text() and 'in _raise' in log.read_text()


WRITES_MUCH = """
from pisr_plugin.cli import common
raise SystemExit(common.run(lambda: print('x' * 10**6)))
"""


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'from pisr_plugin.cli import common\nraise SystemExit(common.run(lambda: print("x" * 10**6)))',
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 141


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_it_imports_ends_a_command_quietly(tmp_path, number):
    (tmp_path / 'torch.py').write_text('import time\nopen("importing", "w").close()\ntime.sleep(60)\n')
    process = start_fresh(ROOT / 'tools/train.py', '-opt', 'x.yml', cwd=tmp_path, PYTHONPATH=f'{tmp_path}:{ROOT}')
    while not (tmp_path / 'importing').exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 130 and output == ''
