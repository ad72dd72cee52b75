// Zooms and moves both pictures of the slider together. The slider itself is compare.js.
const LARGEST = 32;

export class View {
  constructor(stage, changed) {
    this.stage = stage;
    this.changed = changed;
    this.fingers = new Map();
    stage.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
    stage.addEventListener('keydown', (event) => this.key(event));
    // In the capturing phase: the slider follows a pointer only where this does not take it.
    for (const type of ['pointerdown', 'pointermove', 'pointerup', 'pointercancel']) {
      stage.addEventListener(type, (event) => this.pointer(event), { capture: true });
    }
    this.fit();
  }

  fit() {
    [this.zoom, this.x, this.y] = [1, 0, 0];
    this.apply();
  }

  // Zooms so that the point (x, y) of the stage, by default its middle, stays where it is.
  zoomTo(zoom, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const next = Math.min(Math.max(zoom, 1), LARGEST);
    this.x = x - ((x - this.x) * next) / this.zoom;
    this.y = y - ((y - this.y) * next) / this.zoom;
    this.zoom = next;
    this.apply();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.apply();
  }

  // The zoom at which a pixel of the result is a pixel of the screen.
  get actual() {
    const canvas = this.stage.querySelector('canvas');
    return canvas ? canvas.width / (this.stage.clientWidth * devicePixelRatio) : 1;
  }

  apply() {
    const inside = (value, side) => Math.min(Math.max(value, side * (1 - this.zoom)), 0);
    this.x = inside(this.x, this.stage.clientWidth);
    this.y = inside(this.y, this.stage.clientHeight);
    this.stage.style.setProperty('--view', `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`);
    this.stage.classList.toggle('pixels', this.zoom > 1.5 * this.actual);
    this.changed(this.zoom / this.actual);
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // else the page could not be scrolled
    event.preventDefault();
    this.zoomTo(this.zoom * 2 ** (-event.deltaY / 200), ...this.place(event));
  }

  key(event) {
    const step = 40;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) this.move(...moves[event.key]);
    else if (event.key === '+' || event.key === '=') this.zoomTo(this.zoom * 1.5);
    else if (event.key === '-') this.zoomTo(this.zoom / 1.5);
    else if (event.key === '0') this.fit();
    else return;
    event.preventDefault();
  }

  // Shift and a drag, or two fingers.
  pointer(event) {
    const { type, pointerId } = event;
    const before = [...this.fingers.values()];
    if (type === 'pointerdown') {
      if (event.pointerType !== 'touch' && !event.shiftKey) return;
      this.fingers.set(pointerId, this.place(event));
      if (!event.shiftKey && this.fingers.size < 2) return; // one finger moves the slider
      this.stage.setPointerCapture(pointerId);
    } else if (!this.fingers.has(pointerId)) {
      return;
    } else if (type === 'pointermove') {
      this.fingers.set(pointerId, this.place(event));
      const after = [...this.fingers.values()];
      if (after.length < 2 && !event.shiftKey) return;
      const [from, to] = [middle(before), middle(after)];
      this.move(to[0] - from[0], to[1] - from[1]);
      if (after.length > 1) this.zoomTo((this.zoom * span(after)) / (span(before) || 1), ...to);
    } else {
      this.fingers.delete(pointerId);
      return;
    }
    event.stopImmediatePropagation();
  }

  place(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
}

const middle = (points) => [0, 1].map((i) => points.reduce((sum, point) => sum + point[i], 0) / points.length);
const span = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);
