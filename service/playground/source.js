// What a picture starts from besides words: the board, a file put onto it, or the camera.

import { Board, cover } from "/playground/board.js";

const COLOURS = ["#1d1b19", "#e4572e", "#f6b73c", "#5aa65a", "#3f7fd1", "#8a5cc2", "#8b5a3c", "#ffffff"];
const COLOUR_NAMES = ["Black", "Red", "Yellow", "Green", "Blue", "Violet", "Brown", "White"];
const BRUSHES = { Fine: 0.025, Medium: 0.06, Broad: 0.15 };
const JPEG_QUALITY = 0.9;
const DEFAULT_STRENGTH = 0.5; // the service's own

const $ = (id) => document.getElementById(id);
const small = document.createElement("canvas");

export class Source {
  #onChange;
  #board;
  #camera = null;
  #strengths = [];
  mode = "words";

  /** `onChange()` hears of every new thing to start from. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#board = new Board($("board"), () => {
      this.#showUndo();
      onChange();
    });
    this.#showUndo();
    $("colours").append(...COLOURS.map((colour, index) => this.#colourOption(colour, index)));
    $("brushes").append(...Object.entries(BRUSHES).map((brush) => this.#brushOption(brush)));
    $("undo").addEventListener("click", () => this.undo());
    $("clear").addEventListener("click", () => this.#board.clear());
    $("file").addEventListener("change", ({ target }) => {
      if (target.files.length) this.open(target.files[0]);
      target.value = "";
    });
    $("freeze").addEventListener("click", () => this.#freeze());
    $("strength").addEventListener("input", () => {
      this.#showStrength();
      onChange();
    });
    for (const radio of document.querySelectorAll("input[name=start]")) {
      radio.addEventListener("change", () => this.choose(radio.value));
    }
  }

  /** Fit a model; the whole choice is hidden for one that draws from words alone. */
  fit(model) {
    const canStart = Boolean(model.can_start_from_image) && (model.strengths ?? []).length > 0;
    $("start").hidden = !canStart;
    if (!canStart) return;
    this.#strengths = [...model.strengths].reverse();
    const range = $("strength");
    range.max = this.#strengths.length - 1;
    range.value = nearest(this.#strengths, DEFAULT_STRENGTH);
    this.#showStrength();
    [small.width, small.height] = model.sizes[0];
    this.#board.resize(model.sizes[0]);
    this.#showUndo();
    // Browsers give the camera to pages over https and on this very machine only.
    $("start-camera").hidden = !navigator.mediaDevices;
  }

  get isOffered() {
    return !$("start").hidden;
  }

  /** What a wish adds: { image, strength }, or nothing while there is nothing to start from. */
  read() {
    const picture = this.#picture();
    if (!picture) return {};
    const context = small.getContext("2d");
    // The camera is shown as a mirror, so it is drawn as one.
    if (this.mode === "camera") context.setTransform(-1, 0, 0, 1, small.width, 0);
    else context.resetTransform();
    cover(context, picture, picture.videoWidth || picture.width, picture.videoHeight || picture.height);
    const image = small.toDataURL("image/jpeg", JPEG_QUALITY).split(",")[1];
    return { image, strength: this.#strengths[$("strength").value] };
  }

  /** Whether there is always something new to start from. */
  get isMoving() {
    return this.mode === "camera" && this.#picture() !== null;
  }

  /** The most steps that a start at this strength leaves. */
  get maxSteps() {
    return this.#picture() ? Number($("strength").value) + 1 : Infinity;
  }

  async choose(mode) {
    this.mode = mode;
    document.querySelector(`input[name=start][value=${mode}]`).checked = true;
    document.body.dataset.start = mode;
    $("source").hidden = mode === "words";
    $("camera").hidden = $("freeze").hidden = mode !== "camera";
    $("board").hidden = $("tools").hidden = mode !== "drawing";
    this.#stopCamera();
    if (mode === "camera") await this.#startCamera();
    this.#onChange();
  }

  undo() {
    this.#board.undo();
  }

  /** Take pictures that are dropped or pasted anywhere on the page. */
  listenForFiles() {
    const open = (event, files) => {
      const file = [...files].find(({ type }) => type.startsWith("image/"));
      if (!file || !this.isOffered) return;
      event.preventDefault();
      this.open(file);
    };
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => open(event, event.dataTransfer.files));
    addEventListener("paste", (event) => open(event, event.clipboardData.files));
  }

  /** Put a picture file onto the board. */
  async open(file) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      this.#say("This file is no picture that the browser knows.");
      return;
    }
    if (this.mode !== "drawing") await this.choose("drawing");
    this.#board.put(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
    this.#say("");
  }

  #picture() {
    if (this.mode === "drawing" && !this.#board.isBlank) return this.#board.picture;
    if (this.mode === "camera" && this.#camera && $("camera").videoWidth) return $("camera");
    return null;
  }

  async #startCamera() {
    this.#say("");
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
      if (this.mode !== "camera") return stop(stream);
      this.#camera = stream;
      $("camera").srcObject = stream;
      await $("camera").play();
    } catch {
      this.#say("There is no camera, or this page may not use it.");
    }
    return undefined;
  }

  #stopCamera() {
    if (this.#camera) stop(this.#camera);
    this.#camera = null;
    $("camera").srcObject = null;
  }

  /** Keep what the camera sees, to draw on it. */
  async #freeze() {
    const video = $("camera");
    if (!video.videoWidth) return;
    const still = document.createElement("canvas");
    [still.width, still.height] = [video.videoWidth, video.videoHeight];
    const context = still.getContext("2d");
    context.setTransform(-1, 0, 0, 1, still.width, 0);
    context.drawImage(video, 0, 0);
    await this.choose("drawing");
    this.#board.put(still, still.width, still.height);
  }

  #say(text) {
    $("source-message").textContent = text;
  }

  #showUndo() {
    const isBlank = this.#board?.isBlank ?? true;
    $("undo").disabled = $("clear").disabled = isBlank;
    $("board").parentElement.classList.toggle("blank", isBlank);
  }

  #showStrength() {
    const strength = this.#strengths[$("strength").value];
    $("strength-value").textContent = `${Math.round(100 * strength)} %`;
  }

  #colourOption(colour, index) {
    const label = option("colour", COLOUR_NAMES[index], index === 0, () => { this.#board.colour = colour; });
    label.style.setProperty("--colour", colour);
    return label;
  }

  #brushOption([name, width]) {
    const label = option("brush", name, name === "Medium", () => { this.#board.width = width; });
    label.style.setProperty("--width", `${2 + width * 100}px`);
    return label;
  }
}

function option(group, name, isChecked, onChoose) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: group, checked: isChecked });
  radio.setAttribute("aria-label", name);
  radio.addEventListener("change", onChoose);
  label.title = name;
  label.append(radio);
  return label;
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}

function nearest(values, wanted) {
  const distances = values.map((value) => Math.abs(value - wanted));
  return distances.indexOf(Math.min(...distances));
}
