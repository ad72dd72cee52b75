// The switch between the tables of the metrics.
(() => {
  'use strict';
  const metricSwitch = document.getElementById('metric-switch');
  if (!metricSwitch) return;
  const show = (metric) => {
    document.querySelectorAll('.metric-panel').forEach((panel) => (panel.hidden = panel.dataset.metric !== metric));
    metricSwitch.querySelectorAll('button').forEach((b) => b.setAttribute('aria-pressed', b.dataset.metric === metric));
  };
  metricSwitch.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button) show(button.dataset.metric);
  });
  metricSwitch.hidden = false;
  show(metricSwitch.querySelector('button').dataset.metric);
})();
