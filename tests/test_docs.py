"""The documentation: links lead somewhere, commands parse, recipes exist, code runs, the example package trains."""

import argparse
import ast
import gc
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import sys
import textwrap

import pytest
import yaml
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY

from pisr_plugin.cli.list import main as list_
from pisr_plugin.cli.report import main as report
from pisr_plugin.cli.train import main as train
from pisr_plugin.config.recipes import recipe_names
from tests.conftest import ROOT
from tests.report_sample import make_results

PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')])
EXTENDING = ROOT / 'docs/extending.md'
FENCE = re.compile(
    r'(?:<!-- (?P<mark>.*?) -->\s*\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$', re.M | re.S
)
CALL = re.compile(r'\bpisr-\w|\btools/\w+\.py\b')
COMMANDS = re.findall(r"'(pisr-[\w-]+) = ", (ROOT / 'setup.py').read_text())


def page(path) -> str:
    return str(path.relative_to(ROOT))


each_page = pytest.mark.parametrize('path', PAGES, ids=page)


def blocks(path) -> list[tuple[str, str, str]]:
    """Mark, language and text of each fenced block."""
    return [
        (match['mark'] or '', match['language'], textwrap.dedent(match['text']))
        for match in FENCE.finditer(path.read_text())
    ]


# -------------------------------------------------------------------------------------------------- links


def prose(path) -> str:
    return re.sub(r'`[^`\n]*`', '', FENCE.sub('', path.read_text()))


def anchors(path) -> set[str]:
    """Anchors of the headings, as GitHub and the site make them."""
    titles = re.findall(r'^#+ +(.+)$', FENCE.sub('', path.read_text()), re.M)
    return {re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-') for title in titles}


@each_page
def test_links_lead_to_files_and_headings_that_exist(path):
    found = re.findall(r'\]\(([^)\s]+)\)', prose(path)) + re.findall(r'src="([^"]+)"', prose(path))
    for link in found:
        if re.match(r'\w+:', link):
            continue
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_has_a_place_on_the_site():
    navigation = (ROOT / 'mkdocs.yml').read_text()
    for path in ROOT.glob('docs/**/*.md'):
        assert str(path.relative_to(ROOT / 'docs')) in navigation


# -------------------------------------------------------------------------------------------------- commands


def command_lines(path) -> list[list[str]]:
    """The words of each call of a command of the plugin, in blocks and in inline code."""
    text = path.read_text()
    code = [text for _, language, text in blocks(path) if language in ('', 'sh', 'bash')]
    plain = FENCE.sub('', text)
    code += ['\n'.join(lines) for lines in re.findall(r'((?:^ {4}.*\n)+)', plain, re.M)]
    code += [text.replace('\n', ' ') for text in re.findall(r'`(pisr-\w[^`]*)`', plain)]
    found = []
    for text in code:
        for line in text.replace('\\\n', ' ').splitlines():
            if not CALL.search(line):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=';&|')
            lexer.whitespace_split = True
            for is_punctuation, words in itertools.groupby(lexer, lambda word: set(word) <= set(';&|')):
                words = list(words)
                starts = [i for i, word in enumerate(words) if word in COMMANDS or re.fullmatch(r'tools/\w+\.py', word)]
                if starts and not is_punctuation:
                    found.append(words[starts[0] :])
    return found


class Parsed(Exception):
    """The arguments were accepted."""


@each_page
def test_every_command_is_one_that_its_parser_accepts(path, monkeypatch):
    original = argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **more):
        original(self, *args, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_only)
    for command, *words in command_lines(path):
        if '...' in words or not words:  # a form, not a command
            continue
        name = command.removeprefix('tools/').removeprefix('pisr-').removesuffix('.py').replace('-', '_')
        main = importlib.import_module(f'pisr_plugin.cli.{name}').main
        try:
            with pytest.raises(Parsed):
                main(words)
        except SystemExit as error:
            if error.code:
                pytest.fail(f'{command} {shlex.join(words)}')


@each_page
def test_every_recipe_that_is_named_exists(path):
    for name in re.findall(r'(?<![\w/])options/[\w/{},.$*<>-]+\.yml', path.read_text()):
        for pattern in expand(re.sub(r'\$\w+|<\w+>', '*', name)):
            assert list(ROOT.glob(pattern)), name


@each_page
def test_every_recipe_of_the_package_that_a_command_names_exists(path):
    for _, *words in command_lines(path):
        for name in words[words.index('-opt') + 1 :][:1] if '-opt' in words else ():
            assert name.endswith('.yml') or name.isupper() or name in recipe_names(), name


def expand(pattern: str) -> list[str]:
    """Replaces ``{a,b}`` as a shell does."""
    match = re.search(r'\{([^{}]*)\}', pattern)
    if not match:
        return [pattern]
    parts = match[1].split(',')
    return [name for part in parts for name in expand(pattern[: match.start()] + part + pattern[match.end() :])]


# -------------------------------------------------------------------------------------------------- code


@each_page
def test_code_can_be_parsed(path):
    for _, language, text in blocks(path):
        if language == 'python':
            compile(text, str(path), 'exec')
        elif language == 'yaml':
            yaml.safe_load(text)


RUNNABLE = [pytest.param(text, id=page(path)) for path in PAGES for mark, _, text in blocks(path) if mark == 'run']


@pytest.mark.parametrize('text', RUNNABLE)
def test_code_that_is_marked_runs(text, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, 'example', 'exec'), {'__name__': 'example'})


# -------------------------------------------------------------------------------------------------- extending


@pytest.fixture
def package(workspace, monkeypatch):
    """The files of docs/extending.md in the current folder, not imported."""
    for registry in (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY):
        monkeypatch.setattr(registry, '_obj_map', dict(registry._obj_map))
    degradations = importlib.import_module('pisr_plugin.degradations.registry').DEGRADATION_REGISTRY
    monkeypatch.setattr(degradations, '_obj_map', dict(degradations._obj_map))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    for mark, _, text in blocks(EXTENDING):
        if mark.startswith('file: '):
            path = workspace.path / mark.removeprefix('file: ')
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (workspace.path / 'options').symlink_to(ROOT / 'options')
    yield workspace.path
    for name in [name for name in sys.modules if name.partition('.')[0] == 'my_package']:
        del sys.modules[name]
    gc.collect()  # the report finds sections among the subclasses that are alive


def test_the_example_package_trains_by_its_recipe(package, one_thread):
    short = [
        'train:total_iter=2',
        'val:val_freq=2',
        'logger:save_checkpoint_freq=2',
        'logger:print_freq=1',
        'num_gpu=0',
    ]
    assert train(['-opt', 'my_recipe.yml', '--force_yml', *short]) == 0
    student = package / 'experiments/my_recipe/student'
    entries = [json.loads(line) for line in (student / 'metrics.jsonl').read_text().splitlines()]
    assert any('l_distill_body' in str(entry) for entry in entries)  # loss, and through it tap and estimator
    assert 'mae' in (student / 'result.json').read_text()
    assert 'Pixelate' in (student / 'options.yml').read_text()


def test_the_example_package_loads_by_flag(package, capsys):
    assert list_(['losses', 'SharpLoss', '--plugin', 'my_package']) == 0
    assert 'Factor on the result.' in capsys.readouterr().out


def test_the_example_package_loads_by_entry_point(package, capsys, monkeypatch):
    project = re.search(r'\[project.entry-points."(.+)"\]\n(.+) = "(.+)"', (package / 'pyproject.toml').read_text())
    installed = package / 'my_package-0.1.dist-info'
    installed.mkdir()
    (installed / 'METADATA').write_text('Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n')
    (installed / 'entry_points.txt').write_text(f'[{project[1]}]\n{project[2]} = {project[3]}\n')
    monkeypatch.syspath_prepend(package)
    plugins = importlib.import_module('pisr_plugin.config.plugins')
    plugins._import_installed.cache_clear()
    try:
        assert list_(['networks', 'TinySR']) == 0
    finally:
        plugins._import_installed.cache_clear()
    assert 'Channels of the body.' in capsys.readouterr().out


def test_the_example_section_is_on_the_page(package):
    results = make_results(package)
    assert report([str(results), '--plugin', 'my_package']) == 0
    text = (results / 'report.html').read_text()
    assert 'Parameters of each network' in text and '<td>12,644</td><td>1.0</td>' in text


# -------------------------------------------------------------------------------------------------- the site


@pytest.fixture(scope='module')
def reference():
    spec = importlib.util.spec_from_file_location('reference', ROOT / 'docs/reference.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_the_reference_describes_all_that_a_recipe_can_name(reference):
    assert '`num_feat`' in reference['networks.md'] and '## RFDN' in reference['networks.md']
    assert '## VIDLaplaceLoss' in reference['losses.md'] and '## calculate_ifc' in reference['metrics.md']
    assert (
        '## BlurredImageDataset' in reference['datasets.md']
        and '## BlurNoiseDownsample' in reference['degradations.md']
    )
    assert '| `Adam` | torch |' in reference['optimizers.md']
    assert '`train.distill_opt.<name>.loss.from_iter`' in reference['options.md']
    for command in COMMANDS:
        assert f'## {command}' in reference['commands.md']


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    for package in ('mkdocs', 'material', 'latex2mathml'):
        pytest.importorskip(package)
    from mkdocs.__main__ import cli

    with pytest.raises(SystemExit) as end:
        cli(['build', '--strict', '--quiet', '-f', str(ROOT / 'mkdocs.yml'), '-d', str(tmp_path / 'site')])
    assert end.value.code in (0, None)
    assert (tmp_path / 'site/extending/index.html').is_file()
    assert '<math' in (tmp_path / 'site/losses/index.html').read_text()
    for file in tmp_path.rglob('*.html'):
        text = file.read_text()
        assert 'class="arithmatex"' not in text
        assert not re.search(
            r'<(script|img)[^>]* src="(https?:)?//|<link [^>]*stylesheet[^>]*href="(https?:)?//', text
        ), file


# -------------------------------------------------------------------------------------------------- messages


def texts_of_the_code() -> str:
    """All literal texts of the package, each on a line."""
    trees = [ast.parse(path.read_text()) for path in ROOT.glob('pisr_plugin/**/*.py')]
    found = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return '\n'.join(' '.join(text.split()) for text in found if isinstance(text, str))


def test_the_messages_that_troubleshooting_explains_are_in_the_code():
    code = texts_of_the_code()
    for message in re.findall(r'^\*\*`(.+?)`', (ROOT / 'docs/troubleshooting.md').read_text(), re.M):
        words = re.sub(r"'[^']*'", ' ', message).split()
        fragments = [' '.join(words[i : i + 3]).strip(' .') for i in range(len(words) - 2)]
        assert any(fragment in code for fragment in fragments), message
