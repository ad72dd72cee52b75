"""Fills a document's tables from measured figures: ``python -m benchmarks.render docs/performance.jsonl FILE.md``.

The document has a place ``<!-- figures: step -->`` ... ``<!-- end -->`` for each benchmark, ``step@cuda`` for what was
measured on a GPU. What stands between is replaced, so a document cannot say other than what was measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from benchmarks.report import Table, markdown

_PLACE = re.compile(r'(<!-- figures: (\S+) -->\n).*?(<!-- end -->)', re.S)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.render', description=__doc__.splitlines()[0])
    parser.add_argument('figures', type=Path, help='what --json wrote: one run in each line; later runs count')
    parser.add_argument('document', type=Path, help='Markdown file to fill')
    args = parser.parse_args(argv)
    document = args.document.read_text(encoding='utf-8')
    args.document.write_text(render(document, args.figures.read_text(encoding='utf-8')), encoding='utf-8')
    return 0


def render(document: str, figures: str) -> str:
    """The document with every place filled, or marked as not measured.

    Args:
        document: Markdown.
        figures: JSON lines as the benchmarks print them.
    """
    blocks: dict[str, str] = {}
    for line in figures.splitlines():
        run = json.loads(line)
        machine = run['machine']
        for name, tables in run['results'].items():
            shown = [markdown(Table(**table)) for table in tables]
            blocks[f'{name}@cuda' if machine['gpu'] else name] = '\n\n'.join([*shown, _conditions(name, machine)])

    def fill(place: re.Match) -> str:
        return f'{place[1]}{blocks.get(place[2], "*not measured*")}\n{place[3]}'

    return _PLACE.sub(fill, document)


def _conditions(name: str, machine: dict) -> str:
    device = machine['gpu'] or f'{machine["threads"]} thread(s) of {machine["cpu"]} ({machine["cpu_capability"]})'
    return (
        f'`python -m benchmarks {name}{" --device cuda" if machine["gpu"] else ""} --rounds {machine["rounds"]}`, '
        f'{device}, torch {machine["torch"]}, commit {machine["commit"]}'
    )


if __name__ == '__main__':
    sys.exit(main())
