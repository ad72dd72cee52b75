// The button that overrides the system's choice of light or dark.
(() => {
  'use strict';
  const root = document.documentElement;
  const button = document.getElementById('theme');
  const themes = ['auto', 'light', 'dark'];
  let theme = 'auto';
  try {
    theme = localStorage.getItem('pisr-theme') || 'auto';
  } catch {} // a page from disk may be denied storage

  function apply() {
    if (theme === 'auto') delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.querySelector('span').textContent = theme;
    // Canvases cannot follow CSS variables by themselves.
    document.dispatchEvent(new Event('themechange'));
  }
  button.addEventListener('click', () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try {
      localStorage.setItem('pisr-theme', theme);
    } catch {}
    apply();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', apply);
  if (!themes.includes(theme)) theme = 'auto';
  button.hidden = false;
  apply();
})();
