// The controls beside the stage: what they say as a wish, and how they follow the model.

const LONG_PROMPT_CHARS = 70;
const NUM_EXAMPLES = 6;
export const MAX_SEED = 2 ** 32 - 1;

const $ = (id) => document.getElementById(id);
const prompt = $("prompt");
const seed = $("seed");

let styles = [];
let maxPromptChars = Infinity;

/** { prompt, seed, steps } as the controls say it. */
export function readControls() {
  return { prompt: readPrompt(), seed: Number(seed.value), steps: readSteps() };
}

export function writeControls(asked) {
  prompt.value = asked.prompt ?? prompt.value;
  seed.value = asked.seed ?? seed.value;
  const steps = document.querySelector(`input[name=steps][value="${Number(asked.steps)}"]`);
  if (steps) steps.checked = true;
  showPromptState();
}

export function isSeedValid() {
  return /^\d+$/.test(seed.value) && Number(seed.value) <= MAX_SEED;
}

export function isLocked() {
  return $("lock").getAttribute("aria-pressed") === "true";
}

export function setLocked(isNow) {
  $("lock").setAttribute("aria-pressed", String(isNow));
}

export function rollSeed() {
  seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
}

/** How many pictures the stage shows. */
export function readView() {
  return Number(document.querySelector("input[name=view]:checked").value);
}

export function chooseView(numPictures) {
  document.querySelector(`input[name=view][value="${numPictures}"]`).checked = true;
}

/** Close the steps that a start from a picture leaves no room for. */
export function limitSteps(maxSteps) {
  for (const radio of document.querySelectorAll("input[name=steps]")) {
    radio.disabled = Number(radio.value) > maxSteps;
    if (radio.disabled && radio.checked) writeControls({ steps: maxSteps });
  }
}

/** Show what the model offers; `onChange` hears when one of it is chosen. */
export function fitControls(model, onChange) {
  styles = model.styles;
  maxPromptChars = model.max_prompt_chars;
  const [width, height] = model.sizes[0];
  $("model").textContent = `${model.id} · ${width} × ${height}`;
  Object.assign($("picture"), { width, height });
  fill("styles", styles.map((style) => button(style, () => {
    toggleStyle(style);
    onChange();
  })));
  fill("examples", model.examples.slice(0, NUM_EXAMPLES).map((text) => button(text, () => {
    prompt.value = text;
    onChange();
  })));
  const counts = Array.from({ length: model.max_steps }, (_, index) => index + 1);
  fill("steps", counts.map((numSteps) => stepsOption(numSteps, onChange)));
}

export function showPromptState() {
  const text = readPrompt();
  for (const chip of $("styles").children) {
    chip.setAttribute("aria-pressed", String(styleOf(text) === chip.value));
  }
  prompt.classList.toggle("long", text.length > LONG_PROMPT_CHARS);
  const count = $("count");
  count.hidden = text.length < maxPromptChars * 0.8;
  count.textContent = `${text.length} / ${maxPromptChars}`;
}

function readPrompt() {
  return prompt.value.replace(/\s+/g, " ").trim();
}

function readSteps() {
  return Number(document.querySelector("input[name=steps]:checked")?.value ?? 1);
}

function styleOf(text) {
  return styles.find((style) => text.endsWith(`, ${style}`));
}

function toggleStyle(style) {
  const text = readPrompt();
  const old = styleOf(text);
  const bare = old ? text.slice(0, -`, ${old}`.length) : text;
  prompt.value = old === style || !bare ? bare : `${bare}, ${style}`;
}

function button(text, onClick) {
  const element = document.createElement("button");
  Object.assign(element, { type: "button", textContent: text, value: text });
  element.addEventListener("click", onClick);
  return element;
}

function stepsOption(numSteps, onChange) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "steps", value: numSteps, checked: numSteps === 1 });
  radio.addEventListener("change", onChange);
  label.append(radio, String(numSteps));
  return label;
}

function fill(id, elements) {
  $(id).replaceChildren(...elements);
  $(id).closest(".row").hidden = elements.length < 2;
}
