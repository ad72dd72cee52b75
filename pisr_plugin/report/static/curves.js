// Training curves: colours are rows, pale ones their earlier stages, dashes are terms.
(() => {
  'use strict';
  const data = JSON.parse(document.getElementById('data').textContent);
  const panel = document.getElementById('curves-panel');
  if (!panel) return;

  const FIRST_RUNS = 8; // shown before anything is chosen
  const WINDOW = 9; // points that smoothing averages
  const COARSE = matchMedia('(pointer: coarse)').matches;
  const HINT = COARSE
    ? 'To read values, tap the curves.'
    : 'To read values, point at the curves, or focus them and press arrow keys. Drag to enlarge, double-click or press Escape for all.';
  const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4]];
  const M = Bokeh.Models;
  const { Document } = Bokeh.require('document');
  Bokeh.logger.set_level('error'); // it would tell the console how long it took
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const names = (kind) => [...new Set(data.curves.flatMap((curve) => Object.keys(curve[kind])))];
  const chosen = new Set([...data.curves.keys()].filter((i) => !data.curves[i].early).slice(0, FIRST_RUNS));

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
    const half = WINDOW >> 1;
    return values.map((_, i) => {
      const near = values.slice(Math.max(0, i - half), i + half + 1);
      return near.reduce((sum, value) => sum + value, 0) / near.length;
    });
  }

  class Plot {
    constructor(box) {
      this.kind = box.dataset.kind;
      this.host = box.querySelector('.plot');
      this.readout = box.querySelector('.readout');
      this.log = box.querySelector('.log');
      this.smooth = box.querySelector('.smooth');
      this.terms = names(this.kind);
      this.active = new Set(this.kind === 'losses' ? this.terms : this.terms.slice(0, 1));
      box.hidden = !this.terms.length;
      const chips = box.querySelector('.chips');
      this.terms.forEach((term, i) => {
        const mark = document.createElement('span');
        mark.className = `dash d${i % DASHES.length}`;
        const change = (on) => (on ? this.active.add(term) : this.active.delete(term), this.draw());
        chips.append(chip(term, this.active.has(term), change, mark));
      });
      [this.log, this.smooth].forEach((input) => input?.addEventListener('change', () => this.draw()));
      this.host.addEventListener('keydown', (event) => this.step(event));
    }

    series() {
      const found = [];
      data.curves.forEach((curve, run) => {
        if (!chosen.has(run)) return;
        this.terms.forEach((term, i) => {
          if (!this.active.has(term) || !curve[this.kind][term]) return;
          let [x, y] = curve[this.kind][term];
          if (this.smooth?.checked) y = smooth(y);
          if (this.log.checked) [x, y] = [x, y].map((column) => column.filter((_, at) => y[at] > 0));
          found.push({ label: `${curve.label} · ${term}`, x, y, stroke: css(`--s${curve.row % 8}`), alpha: curve.early ? 0.5 : 1, dash: DASHES[i % DASHES.length] });
        });
      });
      return found;
    }

    async draw() {
      const turn = (this.turn = (this.turn || 0) + 1);
      this.lines = this.series();
      this.grid = [...new Set(this.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
      this.host.dataset.series = this.lines.length;
      this.host.ariaBusy = String(this.grid.length > 0);
      const box = document.createElement('div');
      if (!this.grid.length) box.textContent = this.lines.length ? 'Nothing here is above 0.' : 'Choose a run and a term that it has.';
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

    build() {
      const muted = css('--muted');
      const font = getComputedStyle(document.body).fontFamily;
      const axis = {
        axis_label_text_color: muted, axis_label_text_font: font, axis_label_text_font_size: '12px', axis_label_text_font_style: 'normal',
        major_label_text_color: muted, major_label_text_font: font, major_label_text_font_size: '12px',
        axis_line_color: null, major_tick_line_color: css('--line'), minor_tick_line_color: null,
      };
      const log = this.log.checked;
      const [first, last] = [this.grid[0], this.grid.at(-1)];
      const space = (last - first) / 60 || last / 10 || 1;
      const plot = new M.Figure({
        height: 300, sizing_mode: 'stretch_width', toolbar_location: null, min_border_right: 20,
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
      for (const { x, y, stroke, alpha, dash } of this.lines) {
        const source = new M.ColumnDataSource({ data: { x, y } });
        const at = { x: { field: 'x' }, y: { field: 'y' } };
        plot.add_glyph(new M.Line({ ...at, line_color: stroke, line_alpha: alpha, line_dash: dash, line_width: 1.75, line_join: 'round' }), source);
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

    // Shows the values at the index-th iteration; none: how to get at them.
    read(index) {
      this.index = index;
      const at = index === null ? null : this.grid[index];
      const found = at === null ? [] : this.lines.map((line) => ({ ...line, value: line.y[line.x.indexOf(at)] })).filter(({ value }) => value !== undefined);
      if (this.plot) {
        this.cursor.location = at;
        this.points.data = { x: found.map(() => at), y: found.map(({ value }) => value), color: found.map(({ stroke }) => stroke) };
      }
      if (at === null) {
        this.readout.textContent = HINT;
        return;
      }
      const head = document.createElement('strong');
      head.textContent = `iteration ${at.toLocaleString('en')}`;
      this.readout.replaceChildren(head, ...found.map(({ label, stroke, value }) => {
        const item = document.createElement('span');
        const dot = document.createElement('i');
        dot.style.background = stroke;
        const figure = document.createElement('b');
        figure.textContent = value && Math.abs(value) < 1e-3 ? value.toExponential(3) : value.toPrecision(5);
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

  panel.hidden = false;
  const plots = [...panel.querySelectorAll('.plot-box')].map((box) => new Plot(box));
  const redraw = () => plots.forEach((plot) => plot.draw());
  const runs = document.getElementById('curve-runs');
  data.curves.forEach((curve, i) => {
    const mark = document.createElement('span');
    mark.className = `dot s${curve.row % 8}${curve.early ? ' early' : ''}`;
    runs.append(chip(curve.label, chosen.has(i), (on) => (on ? chosen.add(i) : chosen.delete(i), redraw()), mark));
  });
  document.addEventListener('themechange', redraw);
  redraw();
})();
