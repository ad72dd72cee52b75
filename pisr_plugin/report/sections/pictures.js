// Choose an image and two pictures of it for the slider; crops of all pictures, or their error maps, beside it.
(() => {
  'use strict';
  const LARGEST_ERROR = 32; // of 255, drawn white
  const images = pisr.data.pictures;
  const viewer = document.getElementById('viewer');
  const imageSelect = document.getElementById('viewer-image');
  const before = document.getElementById('viewer-before');
  const after = document.getElementById('viewer-after');
  const errors = document.getElementById('viewer-errors');
  const stage = viewer.querySelector('.stage');
  const frame = viewer.querySelector('.frame');
  const strip = document.getElementById('viewer-crops');
  const pixels = Math.min(3, Math.ceil(devicePixelRatio || 1));
  let shown, crop, sources;

  const title = (name) => shown.captions[name][0];

  function choose(index) {
    const kept = [before.value, after.value];
    const first = !shown;
    shown = images[index];
    crop = [...shown.crop];
    const names = Object.keys(shown.pictures);
    [before, after].forEach((select, i) => {
      select.replaceChildren(...names.map((name) => new Option(title(name), name)));
      select.value = !first && names.includes(kept[i]) ? kept[i] : [shown.before, shown.after][i];
    });
    document.getElementById('viewer-cut').textContent = shown.cut ? 'Only the part around the crop is shown.' : '';
    stage.style.aspectRatio = `${shown.width} / ${shown.height}`;
    strip.replaceChildren(...names.map(cropItem));
    sources = undefined;
    pictures();
    load();
    moveFrame();
  }

  // Loads the pictures, then draws the crops of them or of their error maps.
  async function load() {
    const entry = shown;
    const names = Object.keys(shown.pictures);
    delete strip.dataset.drawn;
    const loaded = names.map((name) => Object.assign(new Image(), { src: shown.pictures[name] }));
    await Promise.allSettled(loaded.map((image) => image.decode()));
    if (entry !== shown) return; // another image was chosen meanwhile
    const maps = errors.checked ? errorMaps(loaded) : loaded;
    sources = new Map(names.map((name, i) => [name, maps[i]]));
    document.getElementById('viewer-scale').hidden = !errors.checked;
    pictures();
    drawCrops();
    strip.dataset.drawn = errors.checked ? 'errors' : 'pictures';
  }

  // The absolute error of each picture against the first, the ground truth.
  function errorMaps(loaded) {
    const read = (image) => {
      const canvas = Object.assign(document.createElement('canvas'), { width: shown.width, height: shown.height });
      const context = canvas.getContext('2d', { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      return { canvas, context, pixels: context.getImageData(0, 0, shown.width, shown.height) };
    };
    const truth = read(loaded[0]).pixels.data;
    return loaded.map((image) => {
      const { canvas, context, pixels } = read(image);
      const data = pixels.data;
      for (let i = 0; i < data.length; i += 4) {
        const sum = Math.abs(data[i] - truth[i]) + Math.abs(data[i + 1] - truth[i + 1]) + Math.abs(data[i + 2] - truth[i + 2]);
        data[i] = data[i + 1] = data[i + 2] = (sum / 3) * (255 / LARGEST_ERROR);
      }
      context.putImageData(pixels, 0, 0);
      return canvas;
    });
  }

  function pictures() {
    for (const [select, image, side] of [[before, '.over', '.left'], [after, '.under', '.right']]) {
      const picture = stage.querySelector(image);
      picture.src = (errors.checked && sources?.get(select.value).toDataURL()) || shown.pictures[select.value];
      picture.alt = `${shown.title}, ${title(select.value)}${errors.checked ? ', error map' : ''}`;
      stage.querySelector(`.tag${side}`).textContent = title(select.value);
    }
  }

  function cropItem(name) {
    const item = document.createElement('li');
    const figure = document.createElement('figure');
    const canvas = document.createElement('canvas');
    const caption = document.createElement('figcaption');
    const strong = document.createElement('strong');
    const [text, values] = shown.captions[name];
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `Crop of ${text}`);
    canvas.width = canvas.height = 180 * pixels;
    canvas.dataset.name = name;
    strong.textContent = text;
    caption.append(strong, document.createElement('br'), values);
    figure.append(canvas, caption);
    item.append(figure);
    return item;
  }

  function drawCrops() {
    const [x, y, size] = crop;
    strip.querySelectorAll('canvas').forEach((canvas) => {
      const source = sources?.get(canvas.dataset.name);
      if (!source) return;
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

  images.forEach((image, i) => imageSelect.add(new Option(image.title, i)));
  imageSelect.addEventListener('change', () => choose(Number(imageSelect.value)));
  before.addEventListener('change', pictures);
  after.addEventListener('change', pictures);
  errors.addEventListener('change', load);
  viewer.hidden = false;
  choose(0);
})();
