// Upscales images tile by tile, so that the page stays usable and large photos fit.
import * as ort from './ort/ort.webgpu.bundle.min.mjs';
import { bicubic, fromOutput, toInput, toRGBA, withColors } from './image.js';

const SIDE = 256; // of a tile in pixels of the photo, its surroundings included
const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
ort.env.logLevel = 'error';
ort.env.wasm.numThreads = threads;
ort.env.wasm.wasmPaths = { wasm: new URL('./ort/ort-wasm-simd-threaded.asyncify.wasm', import.meta.url).href };

const sessions = new Map(); // by file and backend
let wanted; // number of the task that the page waits for
let hasGPU; // a promise

self.onmessage = async ({ data: { task, model, image } }) => {
  wanted = task;
  if (!model) return; // the page cancels
  try {
    const started = performance.now();
    const backend = model.file ? await networkTiles(task, model, image) : await bicubicTiles(task, model, image);
    if (task === wanted) self.postMessage({ task, done: true, seconds: (performance.now() - started) / 1000, backend });
  } catch (error) {
    self.postMessage({ task, error: String(error?.message ?? error) });
  }
};

async function bicubicTiles(task, { scale }, image) {
  for (const [tile, share] of tiles(image, SIDE, SIDE)) {
    const part = scaled(tile, scale);
    await send(task, part, bicubic(image, scale, part), share);
    if (task !== wanted) return;
  }
  return 'JavaScript';
}

async function networkTiles(task, model, image) {
  hasGPU ??= navigator.gpu?.requestAdapter().then(Boolean, () => false);
  if (await hasGPU) {
    try {
      await run(task, model, image, 'webgpu');
      return 'WebGPU';
    } catch (error) {
      hasGPU = Promise.resolve(false); // a driver that fails once fails again
    }
  }
  await run(task, model, image, 'wasm');
  return threads > 1 ? `WASM, ${threads} threads` : 'WASM, 1 thread';
}

async function run(task, model, image, provider) {
  const key = `${model.file} ${provider}`;
  if (!sessions.has(key)) {
    const url = new URL(model.file, import.meta.url).href;
    sessions.set(key, await ort.InferenceSession.create(url, { executionProviders: [provider] }));
  }
  const { scale, color, window, pad } = model;
  const core = pad === null ? Infinity : Math.max(SIDE - 2 * pad, SIDE / 2); // null: it needs the whole image
  const step = Math.ceil(core / window) * window || core;
  for (const [tile, share] of tiles(image, step, step)) {
    if (task !== wanted) return;
    const around = surrounded(tile, Math.ceil((pad ?? 0) / window) * window, image);
    const input = toInput(image, around, color, window);
    const { sr } = await sessions.get(key).run({ lq: new ort.Tensor('float32', input.data, input.dims) });
    const part = scaled(tile, scale);
    const inside = { ...part, x: part.x - around.x * scale, y: part.y - around.y * scale };
    const rgb = color === 'y' ? withColors(sr, inside, bicubic(image, scale, part)) : fromOutput(sr, inside);
    await send(task, part, rgb, share);
  }
}

function* tiles({ width, height }, columns, rows) {
  const across = Math.ceil(width / columns) || 1;
  const down = Math.ceil(height / rows) || 1;
  for (let i = 0; i < across * down; i++) {
    const x = i % across ? (i % across) * columns : 0; // 0 times Infinity is no number
    const y = i >= across ? Math.floor(i / across) * rows : 0;
    yield [{ x, y, width: Math.min(columns, width - x), height: Math.min(rows, height - y) }, (i + 1) / (across * down)];
  }
}

function surrounded(tile, pad, image) {
  const [x, y] = [Math.max(tile.x - pad, 0), Math.max(tile.y - pad, 0)];
  const right = Math.min(tile.x + tile.width + pad, image.width);
  const below = Math.min(tile.y + tile.height + pad, image.height);
  return { x, y, width: right - x, height: below - y };
}

function scaled({ x, y, width, height }, scale) {
  return { x: x * scale, y: y * scale, width: width * scale, height: height * scale };
}

// Sends a part of the result; then lets a message of the page in, which may cancel.
async function send(task, part, rgb, share) {
  const data = toRGBA(rgb);
  self.postMessage({ task, part, data, share }, [data.buffer]);
  await new Promise((resolve) => setTimeout(resolve));
}
