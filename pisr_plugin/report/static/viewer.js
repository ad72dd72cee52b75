// Choose an image and two pictures of it for the slider; crops of all pictures beside it.
(() => {
  'use strict';
  const data = JSON.parse(document.getElementById('data').textContent);
  const viewer = document.getElementById('viewer');
  if (!viewer) return;

  const title = new Map([['', 'ground truth'], ...data.rows.map((row) => [row.name, row.title])]);
  const imageSelect = document.getElementById('viewer-image');
  const before = document.getElementById('viewer-before');
  const after = document.getElementById('viewer-after');
  const stage = viewer.querySelector('.stage');
  const frame = viewer.querySelector('.frame');
  const strip = document.getElementById('viewer-crops');
  const pixels = Math.min(3, Math.ceil(devicePixelRatio || 1));
  let shown, crop, sources;

  function figures(row) {
    const values = data.sets[shown.set][row]?.[shown.name] || {};
    return Object.entries(data.metrics)
      .filter(([metric]) => metric in values)
      .map(([metric, { digits }]) => values[metric].toFixed(digits))
      .join(' / ');
  }

  function choose(index) {
    const kept = [before.value, after.value];
    const first = !shown;
    shown = data.shown[index];
    crop = [...shown.crop];
    const names = ['', ...data.rows.map((row) => row.name)].filter((name) => name in shown.pictures);
    [before, after].forEach((select, i) => {
      select.replaceChildren(...names.map((name) => new Option(title.get(name), name)));
      select.value = !first && names.includes(kept[i]) ? kept[i] : [shown.before, shown.after][i];
    });
    document.getElementById('viewer-cut').textContent = shown.cut ? 'Only the part around the crop is shown.' : '';
    stage.style.aspectRatio = `${shown.width} / ${shown.height}`;
    sources = new Map(names.map((name) => [name, Object.assign(new Image(), { src: shown.pictures[name] })]));
    pictures();
    strip.replaceChildren(...names.map(cropFigure));
    delete strip.dataset.drawn;
    Promise.allSettled([...sources.values()].map((source) => source.decode())).then(() => {
      drawCrops();
      strip.dataset.drawn = shown.name;
    });
    moveFrame();
  }

  function pictures() {
    for (const [select, image, side] of [[before, '.over', '.left'], [after, '.under', '.right']]) {
      const picture = stage.querySelector(image);
      picture.src = shown.pictures[select.value];
      picture.alt = `${shown.name}, ${title.get(select.value)}`;
      stage.querySelector(`.tag${side}`).textContent = title.get(select.value);
    }
  }

  function cropFigure(name) {
    const figure = document.createElement('figure');
    const canvas = document.createElement('canvas');
    const caption = document.createElement('figcaption');
    const strong = document.createElement('strong');
    figure.setAttribute('role', 'listitem');
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `Crop of ${title.get(name)}`);
    canvas.width = canvas.height = 180 * pixels;
    canvas.dataset.name = name;
    strong.textContent = title.get(name);
    caption.append(strong, document.createElement('br'), figures(name) || 'reference');
    figure.append(canvas, caption);
    return figure;
  }

  function drawCrops() {
    const [x, y, size] = crop;
    strip.querySelectorAll('canvas').forEach((canvas) => {
      const source = sources.get(canvas.dataset.name);
      if (!source?.complete || !source.naturalWidth) return;
      const context = canvas.getContext('2d');
      context.imageSmoothingEnabled = false;
      context.drawImage(source, x, y, size, size, 0, 0, canvas.width, canvas.height);
    });
  }

  function moveFrame(dx = 0, dy = 0) {
    const size = crop[2];
    crop[0] = Math.round(Math.min(Math.max(crop[0] + dx, 0), shown.width - size));
    crop[1] = Math.round(Math.min(Math.max(crop[1] + dy, 0), shown.height - size));
    frame.style.left = `${(100 * crop[0]) / shown.width}%`;
    frame.style.top = `${(100 * crop[1]) / shown.height}%`;
    frame.style.width = `${(100 * size) / shown.width}%`;
    frame.style.height = `${(100 * size) / shown.height}%`;
    drawCrops();
  }

  frame.addEventListener('keydown', (event) => {
    const step = event.shiftKey ? 1 : 8;
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!move) return;
    event.preventDefault();
    moveFrame(...move);
  });
  let grip;
  frame.addEventListener('pointerdown', (event) => {
    frame.setPointerCapture(event.pointerId);
    grip = [event.clientX, event.clientY, ...crop];
  });
  frame.addEventListener('pointermove', (event) => {
    if (!frame.hasPointerCapture(event.pointerId)) return;
    const ratio = shown.width / stage.getBoundingClientRect().width;
    crop[0] = grip[2];
    crop[1] = grip[3];
    moveFrame((event.clientX - grip[0]) * ratio, (event.clientY - grip[1]) * ratio);
  });

  data.shown.forEach((entry, i) => imageSelect.add(new Option(`${entry.set} · ${entry.name}`, i)));
  imageSelect.addEventListener('change', () => choose(Number(imageSelect.value)));
  before.addEventListener('change', pictures);
  after.addEventListener('change', pictures);
  viewer.hidden = false;
  choose(0);
})();
