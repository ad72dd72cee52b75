// Tables that sort by the column whose heading is pressed.
(() => {
  'use strict';

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
  pisr.sortable = sortable; // for tables that a section's script makes
})();
