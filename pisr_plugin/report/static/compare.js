// Before/after sliders: a range input, and dragging on the picture, move the line between two pictures.
(() => {
  'use strict';
  document.querySelectorAll('.compare').forEach((compare) => {
    const stage = compare.querySelector('.stage');
    const range = compare.querySelector('input[type=range]');
    const update = () => stage.style.setProperty('--share', `${range.value}%`);
    const follow = (event) => {
      const box = stage.getBoundingClientRect();
      range.value = Math.round(((event.clientX - box.left) / box.width) * 100);
      update();
    };
    range.addEventListener('input', update);
    stage.addEventListener('pointerdown', (event) => {
      if (event.button || event.target.closest('.frame')) return;
      stage.setPointerCapture(event.pointerId);
      follow(event);
    });
    stage.addEventListener('pointermove', (event) => {
      if (stage.hasPointerCapture(event.pointerId)) follow(event);
    });
    update();
  });
})();
