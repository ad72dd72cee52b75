// The table of every image in the test set and metric that are chosen.
(() => {
  'use strict';
  const { metrics, titles, sets } = pisr.data.images;
  const panel = document.getElementById('images-panel');
  const setSelect = document.getElementById('images-set');
  const metricSelect = document.getElementById('images-metric');

  function cell(row, tag, text, value, className) {
    const element = document.createElement(tag);
    element.textContent = text;
    if (value !== undefined) element.dataset.value = value;
    if (className) element.className = className;
    row.append(element);
    return element;
  }

  function table(set, metric) {
    const rows = Object.keys(titles).filter((row) => Object.keys(sets[set][row] || {}).length);
    const { better, digits } = metrics[metric];
    const table = document.createElement('table');
    table.className = 'sortable';
    const head = table.createTHead().insertRow();
    for (const [text, first] of [['Image', 'ascending'], ...rows.map((row) => [titles[row], null])]) {
      const th = cell(head, 'th', text, undefined, first ? '' : 'num');
      th.scope = 'col';
      th.dataset.first = first || (better === 'higher' ? 'descending' : 'ascending');
    }
    const body = table.createTBody();
    const images = [...new Set(rows.flatMap((row) => Object.keys(sets[set][row])))];
    for (const image of images) {
      const tr = body.insertRow();
      cell(tr, 'th', image, image).scope = 'row';
      for (const row of rows) {
        const value = sets[set][row][image]?.[metric];
        cell(tr, 'td', value === undefined ? '–' : value.toFixed(digits), value ?? '', 'num');
      }
    }
    pisr.sortable(table);
    return table;
  }

  Object.keys(sets).forEach((set) => setSelect.add(new Option(set, set)));
  Object.keys(metrics).forEach((metric) => metricSelect.add(new Option(metric.toUpperCase(), metric)));
  const update = () => panel.querySelector('.scroll').replaceChildren(table(setSelect.value, metricSelect.value));
  setSelect.addEventListener('change', update);
  metricSelect.addEventListener('change', update);
  panel.hidden = false;
  update();
})();
