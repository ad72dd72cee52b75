"""A hook of MkDocs: adds the reference pages, written from what the plugin registers, and pages of the root folder."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import re
from contextlib import redirect_stdout
from html import unescape
from pathlib import Path
from typing import Any
from unittest import mock

import pisr_plugin  # noqa: F401  (registers everything, and makes the next line possible)

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY

from pisr_plugin.config.json_schema import recipe_schema
from pisr_plugin.degradations.registry import DEGRADATION_REGISTRY
from pisr_plugin.models.optimizers import is_usable, optimizers
from pisr_plugin.utils.docstrings import argument_docs, first_sentence

ROOT = Path(__file__).parents[1]
REGISTRIES = {
    'networks': (ARCH_REGISTRY, 'Networks and estimators', 'network_g, network_t, network_d or an estimator'),
    'losses': (LOSS_REGISTRY, 'Losses', 'pixel_opt, imitation_opt, gan_opt, perceptual_opt or a link'),
    'metrics': (METRIC_REGISTRY, 'Metrics', 'val.metrics'),
    'datasets': (DATASET_REGISTRY, 'Datasets', 'a block of datasets'),
    'degradations': (DEGRADATION_REGISTRY, 'Degradations', 'train.degradation'),
}
DEFINED = {  # page by what the name of a definition in the JSON schema begins with
    'arch': 'networks',
    'loss': 'losses',
    'metric': 'metrics',
    'dataset': 'datasets',
    'degradation': 'degradations',
    'optimizer': 'optimizers',
}
FROM_ROOT = {'changelog.md': 'CHANGELOG.md', 'contributing.md': 'CONTRIBUTING.md'}


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to the site."""
    from mkdocs.structure.files import File

    texts = {f'reference/{name}': text for name, text in pages().items()}
    texts |= {name: (ROOT / source).read_text(encoding='utf-8') for name, source in FROM_ROOT.items()}
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to files of the root folder, and links in these files, into links to the site's pages."""
    folder = os.path.dirname(page.file.src_path) or '.'
    for name, source in {**FROM_ROOT, 'index.md': 'README.md'}.items():
        markdown = re.sub(rf'\]\((\.\./)*{source}', f']({os.path.relpath(name, folder)}', markdown)
    return markdown.replace('](docs/', '](') if page.file.src_path in FROM_ROOT else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Turns formulas into MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    formula = re.compile(r'(?s)<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>')
    return formula.sub(
        lambda match: convert(unescape(match[2]), 'block' if match[1] == 'div' else 'inline'),
        html,
    )


def pages() -> dict[str, str]:
    """Returns the text of each reference page by file name."""
    texts = {f'{name}.md': _registered(*entry) for name, entry in REGISTRIES.items()}
    return {**texts, 'optimizers.md': _optimizers(), 'options.md': _options(), 'commands.md': _commands()}


def _registered(registry: Any, title: str, where: str) -> str:
    parts = [f'# {title}', f'What `type` can name in {where}. Classes of BasicSR are marked with its name.']
    for name, target in sorted(dict(iter(registry)).items(), key=lambda entry: entry[0].lower()):
        origin = '' if target.__module__.startswith('pisr_plugin') else f' ({target.__module__.partition(".")[0]})'
        parts += [f'## {name.removesuffix("_basicsr")}{origin}', _text(first_sentence(target))]
        docs, parameters = argument_docs(target), inspect.signature(target).parameters
        if 'opt' in docs:  # a dataset: its docstring lists the keys of the recipe
            rows = [(key, entry.kind, '', entry.text) for key, entry in docs.items() if key != 'opt']
        else:
            rows = [
                (key, _type(one, docs.get(key)), _default(one), docs[key].text if key in docs else '')
                for key, one in parameters.items()
                if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            ]
        parts.append(_table(('argument', 'type', 'default', ''), rows))
    return '\n\n'.join(filter(None, parts)) + '\n'


def _type(parameter: inspect.Parameter, entry: Any) -> str:
    if parameter.annotation is parameter.empty:
        return entry.kind if entry else ''
    return parameter.annotation if isinstance(parameter.annotation, str) else parameter.annotation.__name__


def _default(parameter: inspect.Parameter) -> str:
    return 'required' if parameter.default is parameter.empty else f'`{parameter.default!r}`'


def _optimizers() -> str:
    rows = [
        (name, cls.__module__.partition('.')[0], first_sentence(cls))
        for name, cls in sorted(optimizers().items(), key=lambda entry: entry[0].lower())
        if is_usable(cls)
    ]
    text = (
        'What `type` can name in `train.optim_g` and `train.optim_d`. `pisr-list optimizers SOAP` shows the arguments.'
    )
    return '\n\n'.join(['# Optimizers', text, _table(('optimizer', 'package', ''), rows)])


def _options() -> str:
    schema = recipe_schema()
    rows: list[tuple[str, ...]] = []
    _walk({'properties': schema['$defs']['stage']['properties']}, '', schema['$defs'], rows)
    return '\n\n'.join(
        [
            '# Options of a recipe',
            '`stages.<stage>` changes any of them in one stage. The arguments beside a `type` are on the pages of '
            'networks, losses, metrics, datasets and degradations. `pisr-list schema` prints all as a JSON schema.',
            _table(('option', 'value', ''), rows),
        ]
    )


def _walk(node: dict, path: str, defs: dict, rows: list) -> None:
    for key, value in node.get('properties', {}).items():
        if key not in ('type', '_delete_'):
            _describe(value, f'{path}.{key}'.strip('.'), defs, rows)
    free = node.get('additionalProperties')
    if isinstance(free, dict) and path:
        _describe(free, f'{path}.<name>', defs, rows)
    for pattern, value in node.get('patternProperties', {}).items():
        _describe(value, f'{path}.{pattern.lstrip("^")}*'.strip('.'), defs, rows)


def _describe(value: dict, path: str, defs: dict, rows: list) -> None:
    name = value.get('$ref', '').removeprefix('#/$defs/')
    resolved = defs.get(name, value)
    text = resolved.get('description', '')
    if name:
        page = DEFINED[name.partition('.')[0]]
        rows.append((path, f'[one of the {page}]({page}.md)', text))
        if page == 'datasets' and path != 'datasets.train':  # the same keys once more
            return
    elif 'type' in resolved.get('properties', {}):
        rows.append((path, _kinds(resolved['properties']['type']), text))
    nested = [key for key in ('properties', 'patternProperties') if set(resolved.get(key, ())) - {'_delete_'}]
    if nested or isinstance(resolved.get('additionalProperties'), dict):
        _walk(resolved, path, defs, rows)
    elif not name:
        rows.append((path, _kinds(resolved), text))


def _kinds(value: dict) -> str:
    for part in value.get('anyOf', [value]):
        if 'enum' in part:
            return 'one of ' + ', '.join(f'`{one}`' for one in part['enum'] if one is not None)
    names = {
        'integer': 'whole number',
        'boolean': 'true or false',
        'string': 'text',
        'array': 'list',
        'object': 'mapping',
    }
    types = [value['type']] if isinstance(value.get('type'), str) else value.get('type', [])
    return next((names.get(name, name) for name in types if name != 'null'), '')


def _commands() -> str:
    parts = ['# Commands', 'The text of `--help` of each command.']
    for name in re.findall(r"'(pisr-[\w-]+) = ", (ROOT / 'setup.py').read_text()):
        parts += [f'## {name}', f'```text\n{_help(name)}\n```']
    return '\n\n'.join(parts) + '\n'


def _help(name: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed), mock.patch('sys.argv', [name]), mock.patch.dict(os.environ, COLUMNS='100'):
        try:
            importlib.import_module(f'pisr_plugin.cli.{name[5:].replace("-", "_")}').main(['--help'])
        except SystemExit:
            pass
    return printed.getvalue().rstrip()


def _table(header: tuple[str, ...], rows: list) -> str:
    if not rows:
        return ''
    lines = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    lines += [f'| `{row[0]}` | {" | ".join(_text(cell) for cell in row[1:])} |' for row in rows]
    return '\n'.join(lines)


def _text(text: str) -> str:
    """A docstring's text as a cell of a table: Sphinx's roles become code."""
    text = re.sub(r':\w+:`~?([^`]+)`', r'`\1`', text).replace('``', '`')
    return ' '.join(text.replace('|', '\\|').split())
