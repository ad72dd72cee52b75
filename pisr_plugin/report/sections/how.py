"""How the figures were measured, and the commands that repeat the runs."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from pisr_plugin.evaluation.results import Evaluation, Run
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.report.sections.summary import environment_facts

_HEADER = re.compile(r'# pisr_plugin [^,]*, (?P<recipe>\S+)(?: (?P<changes>.*))?')


class HowSection(Section):
    """Protocol, environment and commands."""

    position = 80
    label = 'How'
    heading = 'How the figures were measured'

    def __init__(self, report: ReportData) -> None:
        self.environment = environment_facts(report.evaluation)
        self.commands = commands(report.evaluation)
        self.report_command = shlex.join(['pisr-report', shown_path(report.evaluation.path.parent)])


def commands(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Returns the title of each row and the commands that train it, from the first line of the runs' options."""
    found = []
    for row in evaluation.rows:
        lines = dict.fromkeys(command(run) for run in row.runs)  # the stages of a recipe have one command
        if lines:
            found.append((row.title, list(lines)))
    return found


def command(run: Run) -> str:
    """Returns the command that repeats a run: by its recipe and overrides, else by its resolved options."""
    path = run.folder / 'options.yml'
    first = ''
    if path.is_file():
        with open(path, encoding='utf-8', errors='replace') as file:
            first = file.readline(65_536)
    header = _HEADER.fullmatch(first.strip())
    if not header:
        return shlex.join(['pisr-train', '-opt', shown_path(path)])
    words = ['pisr-train', '-opt', header['recipe']]
    # Blanks join the overrides, and values may hold blanks too.
    changes = re.split(r' (?=[\w.:]+=)', header['changes']) if header['changes'] else []
    return shlex.join(words + (['--force_yml', *changes] if changes else []))


def shown_path(path: Path) -> str:
    """Returns a path from the current folder; of a path outside of it the last two parts."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith('..') else '/'.join(path.resolve().parts[-2:])
