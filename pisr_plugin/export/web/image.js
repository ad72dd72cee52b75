// Image maths, as pisr_plugin/utils/resize.py and color.py do it. An image is {width, height, data}: 8-bit RGBA.

// The cubic kernel with a = -0.5.
function cubic(distance) {
  const d = Math.abs(distance);
  if (d >= 2) return 0;
  return d <= 1 ? (1.5 * d - 2.5) * d * d + 1 : ((-0.5 * d + 2.5) * d - 4) * d + 2;
}

// For each output pixel from first to last the input pixels that it is a weighted sum of. Borders are mirrored.
function taps(length, scale, first, last) {
  const stretch = Math.min(scale, 1); // a wider kernel for reduction: antialiasing
  const found = [];
  for (let output = first; output < last; output++) {
    const centre = (output + 0.5) / scale - 0.5;
    const from = Math.ceil(centre - 2 / stretch);
    const pixels = [];
    const weights = [];
    for (let pixel = from; pixel <= centre + 2 / stretch; pixel++) {
      const weight = cubic((pixel - centre) * stretch);
      const turned = ((pixel % (2 * length)) + 2 * length) % (2 * length);
      if (weight) {
        pixels.push(Math.min(turned, 2 * length - 1 - turned));
        weights.push(weight);
      }
    }
    const sum = weights.reduce((a, b) => a + b);
    found.push({ pixels, weights: weights.map((weight) => weight / sum) });
  }
  return found;
}

const round = (value) => Math.min(Math.max(Math.floor(value + 0.5), 0), 255);

// A part of the image after MATLAB's imresize, as RGB in [0, 255]: height first, then width.
// `rounded` rounds after each, as MATLAB does for 8-bit images.
export function bicubic(image, scale, part, rounded = false) {
  const { width, height, data } = image;
  const rows = taps(height, scale, part.y, part.y + part.height);
  const columns = taps(width, scale, part.x, part.x + part.width);
  const used = columns.flatMap((column) => column.pixels);
  const first = used.reduce((a, b) => Math.min(a, b));
  const count = used.reduce((a, b) => Math.max(a, b)) + 1 - first;
  const row = new Float64Array(3 * count);
  const out = new Float32Array(3 * part.width * part.height);
  let at = 0;
  for (const { pixels, weights } of rows) {
    row.fill(0);
    pixels.forEach((y, tap) => {
      const start = 4 * (y * width + first);
      for (let x = 0; x < count; x++) {
        for (let c = 0; c < 3; c++) row[3 * x + c] += weights[tap] * data[start + 4 * x + c];
      }
    });
    if (rounded) row.forEach((value, i) => (row[i] = round(value)));
    for (const column of columns) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let tap = 0; tap < column.pixels.length; tap++) {
          sum += column.weights[tap] * row[3 * (column.pixels[tap] - first) + c];
        }
        out[at++] = rounded ? round(sum) : sum;
      }
    }
  }
  return out;
}

// RGB in [0, 255] as 8-bit RGBA.
export function toRGBA(rgb) {
  const data = new Uint8ClampedArray((rgb.length / 3) * 4); // rounds and clips
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    data[j] = rgb[i];
    data[j + 1] = rgb[i + 1];
    data[j + 2] = rgb[i + 2];
    data[j + 3] = 255;
  }
  return data;
}

// The image that a network for `scale` is tested on: its sides cropped to multiples of the scale, and reduced.
export function reduce(image, scale) {
  const gt = crop(image, Math.floor(image.width / scale) * scale, Math.floor(image.height / scale) * scale);
  const size = { width: gt.width / scale, height: gt.height / scale };
  return { ...size, data: toRGBA(bicubic(gt, 1 / scale, { x: 0, y: 0, ...size }, true)) };
}

// The upper left part of an image.
export function crop(image, width, height) {
  if (width === image.width && height === image.height) return image;
  const data = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y++) {
    data.set(image.data.subarray(4 * y * image.width, 4 * (y * image.width + width)), 4 * y * width);
  }
  return { width, height, data };
}

// BT.601 luminance from 16 to 235, of R, G, B in [0, 255].
const luma = (r, g, b) => 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255;

// A network's input, channel by channel in [0, 1]: a part of an image, mirrored at the right and below it up to
// multiples of `window`.
export function toInput(image, part, color, window) {
  const [width, height] = [part.width, part.height].map((side) => Math.ceil(side / window) * window);
  const size = width * height;
  const data = new Float32Array(color === 'y' ? size : 3 * size);
  const mirror = (position, side) => (position < side ? position : Math.max(2 * side - 2 - position, 0));
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const at = 4 * ((part.y + mirror(y, part.height)) * image.width + part.x + mirror(x, part.width));
      const [r, g, b] = [image.data[at], image.data[at + 1], image.data[at + 2]];
      if (color === 'y') {
        data[i] = luma(r, g, b) / 255;
      } else {
        data[i] = r / 255;
        data[size + i] = g / 255;
        data[2 * size + i] = b / 255;
      }
    }
  }
  return { data, dims: [1, color === 'y' ? 1 : 3, height, width] };
}

// A part of a network's output as RGB in [0, 255].
export function fromOutput({ data, dims }, part) {
  const size = dims[2] * dims[3];
  return mapPart(dims[3], part, (at, out, i) => {
    for (let c = 0; c < 3; c++) out[i + c] = 255 * data[c * size + at];
  });
}

// A part of an upscaled luminance with the colours of `rgb`, which is the part's bicubic enlargement.
export function withColors({ data, dims }, part, rgb) {
  const clip = (value) => Math.min(Math.max(value, 0), 255);
  return mapPart(dims[3], part, (at, out, i) => {
    const [r, g, b] = [clip(rgb[i]), clip(rgb[i + 1]), clip(rgb[i + 2])];
    const y = 255 * Math.min(Math.max(data[at], 0), 1);
    const cb = 128 + (-37.797 * r - 74.203 * g + 112 * b) / 255;
    const cr = 128 + (112 * r - 93.786 * g - 18.214 * b) / 255;
    out[i] = 255 * (0.00456621 * y + 0.00625893 * cr) - 222.921;
    out[i + 1] = 255 * (0.00456621 * y - 0.00153632 * cb - 0.00318811 * cr) + 135.576;
    out[i + 2] = 255 * (0.00456621 * y + 0.00791071 * cb) - 276.836;
  });
}

function mapPart(stride, part, set) {
  const out = new Float32Array(3 * part.width * part.height);
  for (let y = 0, i = 0; y < part.height; y++) {
    for (let x = 0; x < part.width; x++, i += 3) set((part.y + y) * stride + part.x + x, out, i);
  }
  return out;
}

// PSNR on luminance in dB without a border, as tables of this field give it; Infinity for equal images.
export function psnr(image, truth, border) {
  let [sum, count] = [0, 0];
  for (let y = border; y < image.height - border; y++) {
    for (let x = border; x < image.width - border; x++, count++) {
      const [a, b] = [4 * (y * image.width + x), 4 * (y * truth.width + x)];
      const d = (c) => image.data[a + c] - truth.data[b + c];
      sum += (luma(d(0), d(1), d(2)) - 16) ** 2;
    }
  }
  return 10 * Math.log10(255 ** 2 / (sum / count));
}
