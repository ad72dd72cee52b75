"""Render a report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from importlib.resources import files
from typing import Any

from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pisr_plugin import __version__
from pisr_plugin.report import figures, published
from pisr_plugin.report.content import Content
from pisr_plugin.report.evaluation import Evaluation, Row, SetResult
from pisr_plugin.report.pictures import Shown, data_uri
from pisr_plugin.report.reproduce import commands, shown_path

SCRIPTS = ('theme.js', 'tables.js', 'compare.js', 'viewer.js')


def render(content: Content) -> str:
    """The page as HTML."""
    templates = Environment(
        loader=PackageLoader('pisr_plugin.report'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies['json.dumps_kwargs'] = {'sort_keys': False}  # the order of test sets and metrics
    templates.filters.update(value=value_text, signed=signed_text, large=large_text)
    scripts = [_static(name) for name in SCRIPTS]
    if content.curves:
        library = Resources(mode='inline', components=['bokeh']).js_raw[0]  # the rest calls it
        scripts += [library, _static('curves.js')]
    script = '\n'.join(scripts)
    evaluation = content.evaluation
    return templates.get_template('report.html.j2').render(
        content=content,
        evaluation=evaluation,
        tables=[table(evaluation, metric) for metric in evaluation.metrics],
        best=best(evaluation),
        environment=environment_facts(evaluation),
        figures=_figures(content),
        scale_pictures=[
            (entry, *figures.value_range(entry), data_uri(figures.colored(entry))) for entry in content.maps
        ],
        view_pictures=[(view, data_uri(view.picture)) for view in content.views],
        truth_picture=data_uri(content.truth) if content.maps else '',
        published=published,
        commands=commands(evaluation),
        report_command=shlex.join(['python', 'tools/report.py', shown_path(evaluation.path.parent)]),
        version=__version__,
        data=page_data(content),
        styles=Markup(_static('style.css')),
        script=Markup(script),
        # The one script that the page may run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def value_text(value: float | None, metric: str) -> str:
    """A figure as papers write it: dB with two digits, others with four."""
    if value is None:
        return ''
    return f'{value:.{digits(metric)}f}'


def signed_text(value: float, metric: str) -> str:
    """A difference, with its sign."""
    return f'{value:+.{digits(metric)}f}'.replace('-', '\N{MINUS SIGN}')


def digits(metric: str) -> int:
    """Digits after the point in which a metric is written."""
    return 2 if 'psnr' in metric.lower() else 4


def large_text(value: float | None) -> str:
    """Multi-Adds with a unit."""
    if value is None:
        return ''
    power = min(max(int(math.log10(value)) // 3, 0), 4) if value >= 1 else 0
    return f'{value / 1000**power:.3g} {" KMGT"[power]}'.strip()


def table(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    """The main table in one metric, as the template writes it."""
    first = metric == next(iter(evaluation.metrics))  # published figures are in this one
    columns = [name for name in evaluation.sets if any(metric in result.mean for result in _results(evaluation, name))]
    return {
        'metric': metric,
        'better': evaluation.metrics[metric],
        'sets': columns,
        'published': [name for name in columns if first and any(name in row.published for row in evaluation.rows)],
        'best': {name: _best_row(evaluation, name, metric) for name in columns},
    }


def best(evaluation: Evaluation) -> list[tuple[str, Row, SetResult]]:
    """The best student of each test set in the first metric."""
    metric = next(iter(evaluation.metrics))
    found = [(name, evaluation.row(_best_row(evaluation, name, metric))) for name in evaluation.sets]
    return [(name, row, row.sets[name]) for name, row in found if row]


def environment_facts(evaluation: Evaluation) -> dict[str, Any]:
    """Where it was measured; the number of threads only if the device does not tell it too."""
    facts = evaluation.environment
    told = 'thread' in str(facts.get('device', ''))
    return {key: value for key, value in facts.items() if not (told and key == 'threads')}


def caption(evaluation: Evaluation, shown: Shown, row: str) -> str:
    """Caption of a picture: title and figures of the whole image."""
    found = evaluation.row(row)
    if not found:
        return 'ground truth'
    values = found.sets[shown.set].images[shown.name].values
    return f'{found.title}\n{" / ".join(value_text(values.get(metric), metric) for metric in evaluation.metrics)}'


def page_data(content: Content) -> dict[str, Any]:
    """What the page's scripts work on."""
    evaluation = content.evaluation
    return {
        'metrics': {name: {'better': better, 'digits': digits(name)} for name, better in evaluation.metrics.items()},
        'rows': [{'name': row.name, 'title': row.title} for row in evaluation.rows],
        'sets': {
            name: {
                row.name: {image: entry.values for image, entry in row.sets[name].images.items()}
                for row in evaluation.rows
                if name in row.sets and row.sets[name].images
            }
            for name in evaluation.sets
        },
        'shown': [
            {
                'set': shown.set,
                'name': shown.name,
                'crop': shown.crop,
                'cut': shown.cut,
                'width': shown.pictures[''].shape[1],
                'height': shown.pictures[''].shape[0],
                'before': shown.before,
                'after': shown.after,
                'pictures': {row: data_uri(picture) for row, picture in shown.pictures.items()},
            }
            for shown in content.shown
        ],
        'curves': [vars(curves) for curves in content.curves],
    }


def _figures(content: Content) -> dict[str, Markup]:
    """The page's SVG figures; Fig. 4 twice, for wide and for narrow screens."""
    drawn = {}
    if content.trade_off:
        test_set, own, points = content.trade_off
        drawn['tradeoff_wide'] = figures.tradeoff(own, points, test_set, figures.PAGE, (10.2, 5.2))
        drawn['tradeoff_narrow'] = figures.tradeoff(own, points, test_set, figures.PAGE, (4.0, 4.8))
    if content.views:
        drawn['spectra'] = figures.spectra(content.views, figures.PAGE)
        drawn['histograms'] = figures.histograms(content.views, figures.PAGE)
    return {name: Markup(figures.to_svg(figure, name)) for name, figure in drawn.items()}


def _results(evaluation: Evaluation, name: str) -> list[SetResult]:
    return [row.sets[name] for row in evaluation.rows if name in row.sets]


def _best_row(evaluation: Evaluation, name: str, metric: str) -> str | None:
    students = [
        row for row in evaluation.rows if row.role == 'student' and name in row.sets and metric in row.sets[name].mean
    ]
    choose = max if evaluation.metrics[metric] == 'higher' else min
    return choose(students, key=lambda row: row.sets[name].mean[metric]).name if students else None


def _static(name: str) -> str:
    return (files('pisr_plugin.report') / 'static' / name).read_text(encoding='utf-8')
