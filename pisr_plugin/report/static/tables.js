// Sortable tables, the switch between metrics, and the table of every image.
(() => {
  'use strict';
  const data = JSON.parse(document.getElementById('data').textContent);

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const opposite = { ascending: 'descending', descending: 'ascending' };
        const order = opposite[head.getAttribute('aria-sort')] || head.dataset.first;
        heads.forEach((other) => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', order);
        sort(table.tBodies[0], column, order === 'ascending' ? 1 : -1);
      });
    });
  }

  function sort(body, column, sign) {
    const keyed = [...body.rows].map((row) => {
      const text = row.cells[column].dataset.value;
      const number = text === '' ? null : Number(text);
      return { row, text, number };
    });
    keyed.sort((a, b) => {
      // Cells without a value stay at the end either way.
      if (a.text === '' || b.text === '') return (a.text === '') - (b.text === '');
      if (!Number.isNaN(a.number) && !Number.isNaN(b.number)) return sign * (a.number - b.number);
      return sign * a.text.localeCompare(b.text, 'en', { numeric: true });
    });
    body.append(...keyed.map((entry) => entry.row));
  }

  document.querySelectorAll('table.sortable').forEach(sortable);

  const metricSwitch = document.getElementById('metric-switch');
  const panels = document.querySelectorAll('.metric-panel');
  if (metricSwitch) {
    const show = (metric) => {
      panels.forEach((panel) => (panel.hidden = panel.dataset.metric !== metric));
      metricSwitch.querySelectorAll('button').forEach((b) => b.setAttribute('aria-pressed', b.dataset.metric === metric));
    };
    metricSwitch.addEventListener('click', (event) => {
      const button = event.target.closest('button');
      if (button) show(button.dataset.metric);
    });
    metricSwitch.hidden = false;
    show(metricSwitch.querySelector('button').dataset.metric);
  }

  function cell(row, tag, text, value, className) {
    const element = document.createElement(tag);
    element.textContent = text;
    if (value !== undefined) element.dataset.value = value;
    if (className) element.className = className;
    row.append(element);
    return element;
  }

  function imagesTable(set, metric) {
    const rows = data.rows.filter((row) => data.sets[set][row.name]);
    const { better, digits } = data.metrics[metric];
    const table = document.createElement('table');
    table.className = 'sortable';
    const head = table.createTHead().insertRow();
    for (const [text, first] of [['Image', 'ascending'], ...rows.map((row) => [row.title, null])]) {
      const th = cell(head, 'th', text, undefined, first ? '' : 'num');
      th.scope = 'col';
      th.dataset.first = first || (better === 'higher' ? 'descending' : 'ascending');
    }
    const body = table.createTBody();
    const images = [...new Set(rows.flatMap((row) => Object.keys(data.sets[set][row.name])))];
    for (const image of images) {
      const tr = body.insertRow();
      cell(tr, 'th', image, image).scope = 'row';
      for (const row of rows) {
        const value = data.sets[set][row.name][image]?.[metric];
        cell(tr, 'td', value === undefined ? '–' : value.toFixed(digits), value ?? '', 'num');
      }
    }
    sortable(table);
    return table;
  }

  const sets = Object.keys(data.sets).filter((set) => Object.keys(data.sets[set]).length);
  if (!sets.length) {
    document.getElementById('images-none').hidden = false;
    return;
  }
  const panel = document.getElementById('images-panel');
  const setSelect = document.getElementById('images-set');
  const metricSelect = document.getElementById('images-metric');
  sets.forEach((set) => setSelect.add(new Option(set, set)));
  Object.keys(data.metrics).forEach((metric) => metricSelect.add(new Option(metric.toUpperCase(), metric)));
  const update = () => panel.querySelector('.scroll').replaceChildren(imagesTable(setSelect.value, metricSelect.value));
  setSelect.addEventListener('change', update);
  metricSelect.addEventListener('change', update);
  panel.hidden = false;
  update();
})();
