"""Trains on a faulty disk, point by point, and resumes after each. A process of its own, see test_faults.py.

It imports everything once and forks for each run. It trains nothing itself: torch's autograd does not survive a fork.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from pisr_plugin.cli.train import main as train
from pisr_plugin.engine import loop  # noqa: F401  (imported once, here)
from pisr_plugin.inference import checkpoint
from tests.faulty_disk import TAKES_SPACE, DiskModel, FaultyDisk, cuts
from tests.runs import assert_same, reports

COMMAND = ['-opt', 'run.yml', '--auto_resume']
RUN = Path('experiments/run/student')


class Runs:
    """Runs in folders that are copies of a workspace.

    Args:
        workspace: Holds ``run.yml`` and ``datasets``.
    """

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.folder = Path(tempfile.mkdtemp(dir=workspace)).resolve()
        self.problems: list[str] = []
        self.points = 0

    def new(self, name: str) -> Path:
        """Returns a new folder to train in."""
        folder = self.folder / name
        folder.mkdir()
        (folder / 'datasets').symlink_to(self.workspace / 'datasets')
        shutil.copy(self.workspace / 'run.yml', folder)
        return folder

    def fork(self, folder: Path, function: Callable[[], int]) -> tuple[int, str]:
        """Calls a function in a process of its own in ``folder``; returns exit code and output."""
        output = folder.with_suffix('.out')
        process = os.fork()
        if process == 0:
            code = 99
            try:
                number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(number, 1)
                os.dup2(number, 2)
                os.chdir(folder)
                code = function()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), output.read_text(errors='replace')

    def train(self, folder: Path, disk: FaultyDisk) -> tuple[int, str, dict]:
        """Trains on a disk; returns exit code, output, and what the disk noted."""
        notes = folder.with_suffix('.notes')
        file = open(notes, 'wb')

        def run() -> int:
            disk.install()
            try:
                return train(COMMAND)
            finally:
                pickle.dump({'count': disk.count, 'journal': disk.journal, 'saved': disk.saved}, file)
                file.close()

        code, output = self.fork(folder, run)
        file.close()
        return code, output, pickle.loads(notes.read_bytes())

    def check_resumed(self, point: str, folder: Path, unbroken: Path, least: int) -> None:
        """Resumes a run and compares it with an unbroken one. It has to start from iteration ``least`` or later."""

        def resume() -> int:
            code = train(COMMAND)
            if code == 0:
                compare(folder, unbroken)
            return code

        code, output = self.fork(folder, resume)
        found = re.search(r'Resuming training from iter: (\d+)', output)
        started = int(found[1]) if found else 99 if 'is finished' in output else 0
        if code != 0 or started < least:
            self.problems.append(f'{point}: resumed from {started}, expected {least} or more; exit {code}\n{output}')
        self.points += 1
        shutil.rmtree(folder)


def compare(folder: Path, unbroken: Path) -> None:
    """Asserts that a run left the networks, states, records and result of an unbroken one; old states may be more."""
    found, expected = folder / RUN, unbroken / RUN
    for file in [str(file.relative_to(expected)) for file in expected.glob('*/*') if file.suffix != '.json']:
        assert_same(*(checkpoint.load_file_safely(run / file) for run in (found, expected)), file)
    assert reports(found) == reports(expected)
    assert (found / 'result.json').read_text() == (expected / 'result.json').read_text()


def fail_each(runs: Runs, every: int) -> None:
    """Fails every operation of a run in turn, once by EIO and once by a full disk."""

    def with_old_run(name: str) -> Path:
        folder = runs.new(name)
        (folder / RUN).mkdir(parents=True)
        (folder / RUN / 'metrics.jsonl').write_text('an earlier run\n')
        return folder

    unbroken = with_old_run('unbroken')
    code, output, notes = runs.train(unbroken, FaultyDisk(unbroken))
    assert code == 0, output
    for index, error in enumerate((errno.EIO, errno.ENOSPC)):
        for number in range(1 + index * (every // 2), notes['count'] + 1, every):
            if error == errno.ENOSPC and notes['journal'][number - 1][0] not in TAKES_SPACE:
                continue
            point = f'{errno.errorcode[error]} at operation {number} of {notes["count"]}'
            folder = with_old_run(f'{index}_{number}')
            code, output, found = runs.train(folder, FaultyDisk(folder, number, error))
            if code not in (0, 2) or 'Traceback' in output or 'Logging error' in output:
                runs.problems.append(f'{point}: exit {code}\n{output}')
            runs.check_resumed(point, folder, unbroken, max(found['saved'], default=0))


def cut_each(runs: Runs, every: int) -> None:
    """Cuts the power after every operation of a run, with all that may happen to what was not synced."""
    unbroken = runs.new('unbroken')
    code, output, notes = runs.train(unbroken, FaultyDisk(unbroken))
    assert code == 0, output
    seen = set()
    model = DiskModel(str(unbroken))
    for number, operation in enumerate(notes['journal'], 1):
        model.do(*operation)
        for kind, choice in cuts(number).items():
            folder = runs.new(f'{number}_{kind}')
            model.write(folder, *choice)
            digest = _digest(folder / 'experiments')
            if digest in seen or (seen.add(digest), len(seen) % every)[1]:
                shutil.rmtree(folder)
                continue
            runs.check_resumed(f'power cut after operation {number}, {kind} kept', folder, unbroken, _synced(model))


def _synced(model: DiskModel) -> int:
    """Returns the newest iteration whose state a power cut cannot take away."""
    number = 0
    for part in (*RUN.parts, 'training_states'):
        number = model.synced_names.get(number, {}).get(part, -1)
    states = [name for name in model.synced_names.get(number, {}) if name.endswith('.state') and name[0] != '.']
    return max((int(Path(name).stem) for name in states), default=0)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob('*')):
        if path.suffix != '.log':
            digest.update(f'{path.relative_to(folder)}\0'.encode())
            digest.update(path.read_bytes() if path.is_file() else b'')
    return digest.hexdigest()


if __name__ == '__main__':
    runs = Runs(Path(sys.argv[2]).resolve())
    {'fail': fail_each, 'cut': cut_each}[sys.argv[1]](runs, int(sys.argv[3]))
    print(json.dumps({'points': runs.points, 'problems': runs.problems}))
