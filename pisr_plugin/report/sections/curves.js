// Training curves, a plot for each loss term or metric. Colours are rows, pale ones their earlier stages.
(() => {
  'use strict';
  const curves = pisr.data.curves;
  const panel = document.getElementById('curves-panel');

  const FIRST_RUNS = 8; // shown before anything is chosen
  const WINDOW = 9; // points that smoothing averages
  const COARSE = matchMedia('(pointer: coarse)').matches;
  const HINT = COARSE
    ? 'To read values, tap the curves.'
    : 'To read values, point at the curves, or focus them and press arrow keys. Drag to enlarge, double-click or press Escape for all.';
  const M = Bokeh.Models;
  const { Document } = Bokeh.require('document');
  Bokeh.logger.set_level('error'); // it would tell the console how long it took
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const names = (kind) => [...new Set(curves.flatMap((curve) => Object.keys(curve[kind])))];
  const chosen = new Set([...curves.keys()].filter((i) => !curves[i].early).slice(0, FIRST_RUNS));

  function chip(text, checked, change, mark) {
    const label = document.createElement('label');
    const input = document.createElement('input');
    label.className = 'chip';
    input.type = 'checkbox';
    input.checked = checked;
    input.addEventListener('change', () => change(input.checked));
    label.append(input);
    if (mark) label.append(mark);
    label.append(text);
    return label;
  }

  function smooth(values) {
    if (values.length < 4 * WINDOW) return values;
    const half = WINDOW >> 1;
    return values.map((_, i) => {
      const near = values.slice(Math.max(0, i - half), i + half + 1);
      return near.reduce((sum, value) => sum + value, 0) / near.length;
    });
  }

  const number = (value) => (value && Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(4));

  // The plots of the loss terms or of the metrics, and the chips that choose among them.
  class Box {
    constructor(box) {
      const kind = box.dataset.kind;
      const terms = names(kind);
      const chips = box.querySelector('.chips');
      const host = box.querySelector('.plots');
      const [log, smooth] = ['.log', '.smooth'].map((name) => box.querySelector(name));
      box.hidden = !terms.length;
      this.plots = terms.map((term, i) => {
        const plot = new Plot(kind, term, log, smooth);
        plot.figure.hidden = kind === 'metrics' && i > 0;
        chips.append(chip(term, !plot.figure.hidden, (on) => ((plot.figure.hidden = !on), plot.draw())));
        host.append(plot.figure);
        return plot;
      });
      [log, smooth].forEach((input) => input?.addEventListener('change', () => this.draw()));
    }

    draw() {
      this.plots.forEach((plot) => plot.draw());
    }
  }

  // One loss term or metric of all runs that are chosen.
  class Plot {
    constructor(kind, term, log, smooth) {
      Object.assign(this, { kind, term, log, smooth });
      this.figure = document.createElement('figure');
      this.figure.className = 'plot-figure';
      this.figure.dataset.term = term;
      this.caption = document.createElement('figcaption');
      this.host = Object.assign(document.createElement('div'), { className: 'plot', tabIndex: 0, role: 'group' });
      this.host.ariaLabel = `${term} over iterations; arrow keys read values`;
      this.readout = Object.assign(document.createElement('output'), { className: 'readout', ariaLive: 'polite' });
      this.figure.append(this.caption, this.host, this.readout);
      this.host.addEventListener('keydown', (event) => this.step(event));
    }

    series() {
      return [...chosen].sort((a, b) => a - b).filter((run) => curves[run][this.kind][this.term]).map((run) => {
        const curve = curves[run];
        let [x, y] = curve[this.kind][this.term];
        if (this.smooth?.checked) y = smooth(y);
        return { label: curve.label, x, y, stroke: css(`--s${curve.row % 8}`), alpha: curve.early ? 0.5 : 1 };
      });
    }

    async draw() {
      if (this.figure.hidden) return;
      const turn = (this.turn = (this.turn || 0) + 1);
      this.lines = this.series();
      // A term that is not above 0 everywhere has a linear scale.
      this.logarithmic = this.log.checked && this.lines.every((line) => line.y.every((value) => value > 0));
      this.describe();
      this.grid = [...new Set(this.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
      this.host.dataset.series = this.lines.length;
      this.host.ariaBusy = String(this.grid.length > 0);
      const box = document.createElement('div');
      if (!this.grid.length) box.textContent = 'Choose a run that has this term.';
      this.host.replaceChildren(box);
      this.views?.clear();
      this.views = this.plot = null;
      this.read(null);
      if (!this.grid.length) return;
      const page = new Document();
      const plot = this.build();
      page.add_root(plot);
      const views = await Bokeh.embed.add_document_standalone(page, box);
      if (turn !== this.turn) {
        views.clear(); // something else was chosen meanwhile
        return;
      }
      Object.assign(this, { views, plot });
      // The keyboard's place is the box around it, which has a name.
      views.get(plot).canvas_view.events_el.removeAttribute('tabindex');
      this.host.ariaBusy = 'false';
    }

    describe() {
      const strong = document.createElement('strong');
      const [first] = this.lines;
      strong.textContent = this.term;
      const linear = this.log.checked && !this.logarithmic && first ? ', linear scale' : '';
      this.caption.replaceChildren(strong, first ? ` ${number(first.y[0])} → ${number(first.y.at(-1))}${linear}` : '');
    }

    build() {
      const muted = css('--muted');
      const font = getComputedStyle(document.body).fontFamily;
      const axis = {
        axis_label_text_color: muted, axis_label_text_font: font, axis_label_text_font_size: '12px', axis_label_text_font_style: 'normal',
        major_label_text_color: muted, major_label_text_font: font, major_label_text_font_size: '12px',
        axis_line_color: null, major_tick_line_color: css('--line'), minor_tick_line_color: null,
      };
      const log = this.logarithmic;
      const [first, last] = [this.grid[0], this.grid.at(-1)];
      const space = (last - first) / 60 || last / 10 || 1;
      const plot = new M.Figure({
        height: 220, sizing_mode: 'stretch_width', toolbar_location: null, min_border_right: 20,
        x_range: new M.Range1d({ start: first - space, end: last + space }),
        y_range: new M.DataRange1d({ range_padding: 0.06 }),
        x_scale: new M.LinearScale(), y_scale: log ? new M.LogScale() : new M.LinearScale(),
        background_fill_color: null, border_fill_color: null, outline_line_color: null,
      });
      const across = new M.LinearAxis({ ...axis, axis_label: 'iteration', formatter: new M.NumeralTickFormatter({ format: '0,0' }), ticker: new M.BasicTicker({ desired_num_ticks: 5 }) });
      const up = log
        ? new M.LogAxis({ ...axis, formatter: new M.LogTickFormatter() })
        : new M.LinearAxis({ ...axis, formatter: new M.BasicTickFormatter({ power_limit_low: -4 }) });
      plot.add_layout(across, 'below');
      plot.add_layout(up, 'left');
      [across, up].forEach((one, dimension) => plot.add_layout(new M.Grid({ axis: one, dimension, grid_line_color: css('--line') })));
      for (const { x, y, stroke, alpha } of this.lines) {
        const source = new M.ColumnDataSource({ data: { x, y } });
        const at = { x: { field: 'x' }, y: { field: 'y' } };
        plot.add_glyph(new M.Line({ ...at, line_color: stroke, line_alpha: alpha, line_width: 1.75, line_join: 'round' }), source);
        // Few values are seen as points; of a single one there is no line.
        if (x.length <= 12) plot.add_glyph(new M.Scatter({ ...at, size: 6, fill_color: stroke, fill_alpha: alpha, line_color: null }), source);
      }
      // What shows the values that are read.
      this.cursor = new M.Span({ dimension: 'height', location: null, line_color: muted, line_dash: [4, 4] });
      this.points = new M.ColumnDataSource({ data: { x: [], y: [], color: [] } });
      plot.add_layout(this.cursor);
      const dots = plot.add_glyph(new M.Scatter({ x: { field: 'x' }, y: { field: 'y' }, size: 7, fill_color: { field: 'color' }, line_color: css('--panel') }), this.points);
      plot.y_range.renderers = plot.renderers.filter((one) => one !== dots);
      // A finger is to scroll the page.
      if (!COARSE) plot.add_tools(new M.BoxZoomTool({ overlay: new M.BoxAnnotation({ fill_color: css('--accent'), fill_alpha: 0.15, line_color: css('--accent'), line_dash: [], syncable: false, visible: false, left: NaN, right: NaN, top: NaN, bottom: NaN, level: 'overlay' }) }));
      const read = ({ x }) => this.read(this.nearest(x));
      plot.on_event('tap', read);
      plot.on_event('mousemove', read);
      if (!COARSE) plot.on_event('mouseleave', () => this.read(null)); // a finger leaves with each tap
      plot.on_event('doubletap', () => this.whole());
      return plot;
    }

    nearest(x) {
      return this.grid.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(this.grid[best] - x) ? i : best), 0);
    }

    whole() {
      this.views?.get(this.plot).reset();
    }

    // Shows the values at the index-th iteration; null: none.
    read(index) {
      this.index = index;
      const at = index === null ? null : this.grid[index];
      const found = at === null ? [] : this.lines.map((line) => ({ ...line, value: line.y[line.x.indexOf(at)] })).filter(({ value }) => value !== undefined);
      if (this.plot) {
        this.cursor.location = at;
        this.points.data = { x: found.map(() => at), y: found.map(({ value }) => value), color: found.map(({ stroke }) => stroke) };
      }
      if (at === null) {
        this.readout.textContent = '';
        return;
      }
      const head = document.createElement('strong');
      head.textContent = `iteration ${at.toLocaleString('en')}`;
      this.readout.replaceChildren(head, ...found.map(({ label, stroke, value }) => {
        const item = document.createElement('span');
        const dot = document.createElement('i');
        dot.style.background = stroke;
        const figure = document.createElement('b');
        figure.textContent = number(value);
        item.append(dot, `${label}: `, figure);
        return item;
      }));
    }

    step(event) {
      if (!this.plot) return;
      const last = this.grid.length - 1;
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === 'Escape') this.whole();
      if (move === undefined) return;
      event.preventDefault();
      const from = this.index ?? (move > 0 ? -1 : last + 1);
      this.read(Math.min(Math.max(from + move, 0), last));
    }
  }

  document.getElementById('curves-hint').textContent = HINT;
  panel.hidden = false;
  const boxes = [...panel.querySelectorAll('.plot-box')].map((box) => new Box(box));
  const redraw = () => boxes.forEach((box) => box.draw());
  const runs = document.getElementById('curve-runs');
  curves.forEach((curve, i) => {
    const mark = document.createElement('span');
    mark.className = `dot s${curve.row % 8}${curve.early ? ' early' : ''}`;
    runs.append(chip(curve.label, chosen.has(i), (on) => (on ? chosen.add(i) : chosen.delete(i), redraw()), mark));
  });
  document.addEventListener('themechange', redraw);
  redraw();
})();
