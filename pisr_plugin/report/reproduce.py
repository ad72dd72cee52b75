"""Tell how a run can be repeated."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from pisr_plugin.report.evaluation import Evaluation, Run

_HEADER = re.compile(r'# pisr_plugin [^,]*, (?P<recipe>\S+\.ya?ml)(?: (?P<changes>.*))?')


def commands(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Title of each row and the commands that train it, as they stand on top of the runs' options."""
    found = []
    for row in evaluation.rows:
        lines = dict.fromkeys(command(run) for run in row.runs)  # the stages of a recipe share theirs
        if lines:
            found.append((row.title, list(lines)))
    return found


def command(run: Run) -> str:
    """The command that repeats a run: its recipe and overrides, else its resolved options."""
    path = run.folder / 'options.yml'
    first = path.read_text(encoding='utf-8', errors='replace').partition('\n')[0] if path.is_file() else ''
    header = _HEADER.fullmatch(first.strip())
    if not header:
        return shlex.join(['python', 'tools/train.py', '-opt', shown_path(path)])
    words = ['python', 'tools/train.py', '-opt', header['recipe']]
    # The overrides are joined with blanks, which their values may hold too.
    changes = re.split(r' (?=[\w.:]+=)', header['changes']) if header['changes'] else []
    return shlex.join(words + (['--force_yml', *changes] if changes else []))


def shown_path(path: Path) -> str:
    """A path as a reader elsewhere can use it: from the current folder, else only its end."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith('..') else '/'.join(path.resolve().parts[-2:])
