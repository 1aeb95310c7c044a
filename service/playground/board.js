// A board to draw on: brush, colours, undo, pictures put onto it, the keyboard. Knows no service.

const MIN_SIDE_PX = 512;
const MAX_UNDO = 20;
const KEY_STEP = 1 / 32;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Board {
  #canvas;
  #context;
  #onChange;
  #undo = [];
  #last = null;
  #cursor = null;
  colour = "#1d1b19";
  width = 0.06; // of the board's shorter side

  constructor(canvas, onChange) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#onChange = onChange;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => { this.#last = null; });
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", (event) => {
      if (event.key === " ") this.#last = null;
    });
  }

  /** Take the model's proportions, finer than its pixels. */
  resize([width, height]) {
    const scale = Math.max(1, MIN_SIDE_PX / Math.min(width, height));
    Object.assign(this.#canvas, { width: width * scale, height: height * scale });
    this.#undo = [];
    this.#wipe();
  }

  get isBlank() {
    return this.#undo.length === 0;
  }

  get picture() {
    return this.#canvas;
  }

  undo() {
    const before = this.#undo.pop();
    if (!before) return;
    this.#context.putImageData(before, 0, 0);
    this.#onChange();
  }

  clear() {
    if (this.isBlank) return;
    this.#wipe();
    this.#undo = [];
    this.#onChange();
  }

  /** Put a picture onto the board, the middle of it if its proportions are others. */
  put(source, width, height) {
    this.#keep();
    cover(this.#context, source, width, height);
    this.#onChange();
  }

  #wipe() {
    this.#context.fillStyle = "#fff";
    this.#context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #keep() {
    const { width, height } = this.#canvas;
    this.#undo = [...this.#undo.slice(1 - MAX_UNDO), this.#context.getImageData(0, 0, width, height)];
  }

  #down(event) {
    if (event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#keep();
    this.#strokeTo(this.#at(event));
  }

  #move(event) {
    if (!this.#last) return;
    // Between two frames a pen reports many places; all of them make the line smooth.
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.#strokeTo(this.#at(each));
  }

  #key(event) {
    const { width, height } = this.#canvas;
    this.#cursor ??= [width / 2, height / 2];
    const direction = ARROWS[event.key];
    if (direction) {
      const step = KEY_STEP * Math.min(width, height);
      this.#cursor = [
        Math.min(Math.max(this.#cursor[0] + direction[0] * step, 0), width),
        Math.min(Math.max(this.#cursor[1] + direction[1] * step, 0), height),
      ];
      if (this.#last) this.#strokeTo(this.#cursor);
    } else if (event.key === " ") {
      if (event.repeat) return event.preventDefault();
      this.#keep();
      this.#strokeTo(this.#cursor);
    } else {
      return undefined;
    }
    return event.preventDefault();
  }

  #at({ clientX, clientY }) {
    const box = this.#canvas.getBoundingClientRect();
    return [
      ((clientX - box.left) / box.width) * this.#canvas.width,
      ((clientY - box.top) / box.height) * this.#canvas.height,
    ];
  }

  #strokeTo(place) {
    const context = this.#context;
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = this.colour;
    context.lineWidth = this.width * Math.min(this.#canvas.width, this.#canvas.height);
    context.beginPath();
    context.moveTo(...(this.#last ?? place));
    context.lineTo(...place);
    context.stroke();
    this.#last = place;
    this.#onChange();
  }
}

/** Fill a canvas with the largest middle part of a picture. */
export function cover(context, source, width, height) {
  const { width: toWidth, height: toHeight } = context.canvas;
  const scale = Math.max(toWidth / width, toHeight / height);
  const [w, h] = [width * scale, height * scale];
  context.drawImage(source, (toWidth - w) / 2, (toHeight - h) / 2, w, h);
}
