// The page: which photo, which two pictures of it, what is known of them. The networks run in worker.js.
import { crop, psnr, reduce } from './image.js';
import { View } from './view.js';

const LARGEST = 16384; // side in pixels of what browsers draw
const $ = (id) => document.getElementById(id);
const stage = document.querySelector('.stage');
const sides = [
  { select: $('left'), box: stage.querySelector('.over'), tag: stage.querySelector('.tag.left') },
  { select: $('right'), box: stage.querySelector('.under'), tag: stage.querySelector('.tag.right') },
];
const models = await (await fetch('models.json')).json();
let worker = start();
const view = new View(stage, (zoom) => ($('zoom').value = `${Math.round(100 * zoom)} %`));

let photo; // {name, image}
let truth; // an image, or nothing
let results = new Map(); // by key: {canvas, seconds, backend}
let running; // what the worker computes: {task, key, canvas, resolve}
let task = 0;

const status = (text) => ($('status').textContent = text);
const model = (select) => models.find(({ name }) => name === select.value);

// ------------------------------------------------------------------------------------------- photos

async function decode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none' });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  pen.fillStyle = '#fff'; // behind what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0);
  const { width, height, data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  return { width, height, data };
}

async function open(file, kind) {
  if (!file) return;
  stop();
  $('save').disabled = true;
  let image;
  try {
    image = await decode(file);
  } catch {
    status(`${file.name} cannot be read: it is no image that this browser knows.`);
    return;
  }
  if (kind === 'truth') {
    truth = image;
    $('shrink').checked = false;
  } else {
    photo = { name: file.name.replace(/\.[^.]*$/, '') || 'photo', image };
    truth = undefined;
    $('truth').value = '';
  }
  await restart();
}

for (const kind of ['photo', 'truth']) {
  $(kind).addEventListener('change', (event) => open(event.target.files[0], kind));
}
$('shrink').addEventListener('change', () => {
  truth = undefined;
  $('truth').value = '';
  restart();
});
document.addEventListener('paste', (event) => open(event.clipboardData.files[0], 'photo'));
const zone = (event) => event.target.closest?.('.drop');
document.addEventListener('dragover', (event) => {
  event.preventDefault();
  document.querySelectorAll('.drop').forEach((one) => one.classList.toggle('over-it', one === zone(event)));
});
document.addEventListener('drop', (event) => {
  event.preventDefault();
  document.querySelectorAll('.drop').forEach((one) => one.classList.remove('over-it'));
  open(event.dataTransfer.files[0], zone(event)?.dataset.for ?? 'photo');
});

// ------------------------------------------------------------------------------------------ pictures

// What a side shows: bicubic and the ground truth have the scale of the other side's network.
function wanted(side) {
  const { select } = sides[side];
  const own = model(select);
  const { scale } = own ?? model(sides[1 - side].select) ?? models[0];
  const label = select.selectedOptions[0].text;
  return { key: own ? own.name : `${select.value} x${scale}`, label, model: own ?? { scale }, scale };
}

const source = (scale) => ($('shrink').checked ? reduce(photo.image, scale) : photo.image);

function groundTruth(scale) {
  if (!$('shrink').checked) return truth;
  const { width, height } = photo.image;
  return crop(photo.image, width - (width % scale), height - (height % scale));
}

// In the host's memory: the worker's tiles come from there, and PSNR is computed there.
const context = (canvas) => canvas.getContext('2d', { willReadFrequently: true });

function draw({ width, height, data }) {
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  context(canvas).putImageData(new ImageData(data, width, height), 0, 0);
  return canvas;
}

async function restart() {
  stop();
  results = new Map();
  const measured = Boolean(truth || $('shrink').checked);
  for (const { select } of sides) {
    const option = select.querySelector('[value=truth]');
    if (measured && !option) select.add(new Option('Ground truth', 'truth'));
    if (!measured) option?.remove();
  }
  view.fit();
  await show();
}

// Computes what the two sides need and lacks, then shows it.
async function show() {
  if (!photo) return;
  const started = photo;
  stop();
  for (const side of [0, 1]) {
    const { key, model, scale, label } = wanted(side);
    if (sides[side].select.value === 'truth') {
      results.set(key, { canvas: draw(groundTruth(scale)) });
    } else if (!results.has(key)) {
      const image = source(scale);
      if (Math.max(image.width, image.height) * scale > LARGEST) {
        status(`The result would be larger than ${LARGEST} pixels, which browsers do not draw.`);
        return;
      }
      place(side, key, label, document.createElement('canvas'), image, scale);
      if (!(await compute(key, label, model, image, sides[side].box.firstChild))) return;
    }
    if (photo !== started) return;
    const { canvas } = results.get(key);
    place(side, key, label, canvas);
  }
  figures();
  $('save').disabled = false;
}

function place(side, key, label, canvas, image, scale) {
  if (image) Object.assign(canvas, { width: image.width * scale, height: image.height * scale });
  const { box, tag } = sides[side];
  // one canvas cannot be in two places
  box.replaceChildren(sides[1 - side].box.firstChild === canvas ? copy(canvas) : canvas);
  box.setAttribute('aria-label', `${photo.name}, ${label}`);
  tag.textContent = label;
  $('compare').style.setProperty('--ratio', canvas.width / canvas.height);
  $('compare').hidden = false;
  view.apply();
}

function copy(canvas) {
  const other = Object.assign(document.createElement('canvas'), { width: canvas.width, height: canvas.height });
  context(other).drawImage(canvas, 0, 0);
  return other;
}

// ------------------------------------------------------------------------------------------ the worker

// Resolves to whether the picture is finished.
function compute(key, label, model, image, canvas) {
  return new Promise((resolve) => {
    const whole = Boolean(model.file) && model.pad === null;
    running = { task: ++task, key, label, canvas, whole, resolve };
    $('running').hidden = false;
    $('save').disabled = true;
    if (whole) $('progress').removeAttribute('value');
    else $('progress').value = 0;
    status(`${label}: upscaling ${image.width} × ${image.height} pixels`);
    worker.postMessage({ task, model, image });
  });
}

function start() {
  const made = new Worker('worker.js', { type: 'module' });
  made.onmessage = receive;
  made.onerror = (event) => status(`The worker of this page cannot start: ${event.message ?? 'see the console'}`);
  return made;
}

function receive({ data }) {
  if (data.task !== running?.task) return;
  const { key, label, canvas } = running;
  if (data.part) {
    context(canvas).putImageData(new ImageData(data.data, data.part.width), data.part.x, data.part.y);
    if ($('progress').hasAttribute('value')) $('progress').value = data.share;
  } else if (data.error) {
    end(false);
    status(`${label}: the browser could not compute this. ${data.error}`);
  } else {
    results.set(key, { canvas, seconds: data.seconds, backend: data.backend });
    status(`${label}: ready after ${data.seconds.toFixed(2)} s (${data.backend}).`);
    end(true);
  }
}

function end(finished) {
  const { resolve } = running;
  running = undefined;
  $('running').hidden = true;
  resolve(finished);
}

function stop() {
  if (!running) return;
  if (running.whole) { // it is in the middle of its one tile and hears nothing
    worker.terminate();
    worker = start();
  } else {
    worker.postMessage({ task: ++task });
  }
  end(false);
}

$('cancel').addEventListener('click', () => {
  stop();
  status('Cancelled.');
  $('right').focus();
});

// ------------------------------------------------------------------------------------------ figures

const pixels = (canvas) => context(canvas).getImageData(0, 0, canvas.width, canvas.height);

function quality(canvas, scale) {
  const gt = groundTruth(scale);
  if (!gt) return '';
  const [dx, dy] = [gt.width - canvas.width, gt.height - canvas.height];
  if (dx < 0 || dy < 0 || dx >= scale || dy >= scale) return `no: the ground truth has ${gt.width} × ${gt.height} pixels`;
  const value = psnr(pixels(canvas), gt, scale);
  return Number.isFinite(value) ? `${value.toFixed(2)} dB` : 'equal';
}

function figures() {
  const measured = Boolean(groundTruth(1));
  const table = document.createElement('table');
  const head = table.createTHead().insertRow();
  for (const text of ['Picture', ...(measured ? ['PSNR on Y'] : []), 'Time']) {
    head.append(Object.assign(document.createElement('th'), { textContent: text, scope: 'col' }));
  }
  const body = table.createTBody();
  for (const side of [0, 1]) {
    const { key, label, scale } = wanted(side);
    const { canvas, seconds, backend } = results.get(key);
    const row = body.insertRow();
    row.append(Object.assign(document.createElement('th'), { scope: 'row' }));
    cell(row.cells[0], label, `${canvas.width} × ${canvas.height} pixels`);
    if (measured) cell(row.insertCell(), quality(canvas, scale));
    cell(row.insertCell(), seconds === undefined ? '' : `${seconds.toFixed(2)} s`, backend);
  }
  $('figures').replaceChildren(table);
}

function cell(element, text, more = '') {
  element.append(text, Object.assign(document.createElement('small'), { textContent: more }));
}

$('save').addEventListener('click', () => {
  const { key } = wanted(1);
  results.get(key).canvas.toBlob((blob) => {
    const link = Object.assign(document.createElement('a'), {
      href: URL.createObjectURL(blob),
      download: `${photo.name}_${key.replace(' ', '_')}.png`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, 'image/png');
});

// ------------------------------------------------------------------------------------------ controls

for (const { select } of sides) {
  select.add(new Option('Bicubic', 'bicubic'));
  for (const { name } of models) select.add(new Option(name, name));
  select.addEventListener('change', show);
}
sides[1].select.value = models[0].name;
$('in').addEventListener('click', () => view.zoomTo(view.zoom * 1.5));
$('out').addEventListener('click', () => view.zoomTo(view.zoom / 1.5));
$('fit').addEventListener('click', () => view.fit());
$('actual').addEventListener('click', () => view.zoomTo(view.actual));
addEventListener('resize', () => view.apply());
document.documentElement.dataset.ready = '';
