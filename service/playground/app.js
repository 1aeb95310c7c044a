// The page: controls to wishes, pictures and problems to the screen.

import { curlCommand, generate, Problem, readModel } from "/playground/api.js";
import { Latest } from "/playground/latest.js";
import { copy, fileName, readHash, writeHash } from "/playground/share.js";

const TYPING_PAUSE_MS = 60;
const PATIENCE_MS = 300;
const HASH_PAUSE_MS = 400;
const NOTICE_MS = 2000;
const LONG_PROMPT_CHARS = 70;
const MAX_SEED = 2 ** 32 - 1;

const $ = (id) => document.getElementById(id);
const prompt = $("prompt");
const seed = $("seed");
const lock = $("lock");
const latest = new Latest(draw, PATIENCE_MS);

let model = { styles: [], examples: [], max_steps: 1, max_prompt_chars: Infinity };
let typingTimer;
let hashTimer;

// From controls to wishes

function readWish() {
  const steps = document.querySelector("input[name=steps]:checked");
  return { prompt: readPrompt(), seed: Number(seed.value), steps: Number(steps?.value ?? 1) };
}

function readPrompt() {
  return prompt.value.replace(/\s+/g, " ").trim();
}

function isLocked() {
  return lock.getAttribute("aria-pressed") === "true";
}

function rollSeed() {
  seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
}

function wishSoon() {
  showPromptState();
  clearTimeout(typingTimer);
  typingTimer = setTimeout(wishNow, TYPING_PAUSE_MS);
}

function wishNow() {
  clearTimeout(typingTimer);
  showPromptState();
  if (!readPrompt()) {
    latest.cancel();
    say("");
    return;
  }
  if (!/^\d+$/.test(seed.value) || Number(seed.value) > MAX_SEED) {
    latest.cancel();
    say(`Seed is a whole number from 0 to ${MAX_SEED}.`, "seed");
    return;
  }
  if (!isLocked()) rollSeed();
  const wish = readWish();
  latest.ask(wish);
  keepAddress(wish);
}

// From answers to the screen

async function draw(wish, signal) {
  $("stage").setAttribute("aria-busy", "true");
  try {
    const answer = await generate(wish, signal);
    await showPicture(wish, answer, signal);
  } catch (error) {
    if (signal.aborted) return undefined;
    if (!(error instanceof Problem)) throw error;
    const again = error.retryMs ? ` Trying again in ${Math.ceil(error.retryMs / 1000)} s.` : "";
    say(error.message + again, error.field ?? "service");
    return error.retryMs;
  } finally {
    $("stage").setAttribute("aria-busy", "false");
  }
  return undefined;
}

async function showPicture(wish, answer, signal) {
  const picture = $("picture");
  const url = URL.createObjectURL(answer.blob);
  const decoded = new Image();
  decoded.src = url;
  try {
    await decoded.decode();
  } catch {
    throw new Problem("The answer was no picture.");
  }
  if (signal.aborted) {
    URL.revokeObjectURL(url);
    return;
  }
  URL.revokeObjectURL(picture.src);
  picture.src = url;
  picture.alt = wish.prompt;
  picture.hidden = false;
  Object.assign($("save"), { href: url, hidden: false, download: fileName(wish) });
  $("round-trip").textContent = formatMs(answer.roundTripMs);
  $("queue").textContent = formatMs(answer.queueMs);
  $("run").textContent = formatMs(answer.runMs);
  say("");
}

function formatMs(ms) {
  return ms === undefined ? "–" : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/** Tell of a problem, politely: `source` names the field, and the last good picture stays. */
function say(message, source) {
  $("message").textContent = message;
  $("stage").classList.toggle("stale", Boolean(source));
  prompt.setAttribute("aria-invalid", String(source === "prompt"));
  seed.setAttribute("aria-invalid", String(source === "seed"));
}

function showPromptState() {
  const text = readPrompt();
  for (const chip of $("styles").children) {
    chip.setAttribute("aria-pressed", String(styleOf(text) === chip.value));
  }
  prompt.classList.toggle("long", text.length > LONG_PROMPT_CHARS);
  const count = $("count");
  count.hidden = text.length < model.max_prompt_chars * 0.8;
  count.textContent = `${text.length} / ${model.max_prompt_chars}`;
}

// Styles

function styleOf(text) {
  return model.styles.find((style) => text.endsWith(`, ${style}`));
}

function toggleStyle(style) {
  const text = readPrompt();
  const old = styleOf(text);
  const bare = old ? text.slice(0, -`, ${old}`.length) : text;
  prompt.value = old === style || !bare ? bare : `${bare}, ${style}`;
  wishNow();
}

// Sharing

function keepAddress(wish) {
  clearTimeout(hashTimer);
  // Browsers limit how often a page may rewrite its address.
  hashTimer = setTimeout(() => writeHash(wish), HASH_PAUSE_MS);
}

function followAddress() {
  const asked = readHash();
  prompt.value = asked.prompt ?? prompt.value;
  seed.value = asked.seed ?? seed.value;
  const steps = document.querySelector(`input[name=steps][value="${Number(asked.steps)}"]`);
  if (steps) steps.checked = true;
}

async function copyFrom(button, text) {
  button.dataset.label ??= button.textContent;
  button.textContent = (await copy(text)) ? "Copied" : "Copying is not allowed here";
  setTimeout(() => { button.textContent = button.dataset.label; }, NOTICE_MS);
}

// Start

function button(text, onClick) {
  const element = document.createElement("button");
  Object.assign(element, { type: "button", textContent: text, value: text });
  element.addEventListener("click", onClick);
  return element;
}

function stepsOption(numSteps) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "steps", value: numSteps });
  radio.checked = numSteps === 1;
  radio.addEventListener("change", wishNow);
  label.append(radio, String(numSteps));
  return label;
}

function fill(id, elements) {
  $(id).replaceChildren(...elements);
  $(id).closest(".row").hidden = elements.length < 2;
}

function showModel() {
  const [width, height] = model.sizes[0];
  $("model").textContent = `${model.id} · ${width} × ${height}`;
  $("picture").width = width;
  $("picture").height = height;
  fill("styles", model.styles.map((style) => button(style, () => toggleStyle(style))));
  fill("examples", model.examples.map((text) => button(text, () => {
    prompt.value = text;
    wishNow();
  })));
  const counts = Array.from({ length: model.max_steps }, (_, index) => index + 1);
  fill("steps", counts.map(stepsOption));
}

function listen() {
  prompt.addEventListener("input", (event) => event.isComposing || wishSoon());
  prompt.addEventListener("compositionend", wishSoon);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    wishNow();
  });
  seed.addEventListener("input", () => {
    lock.setAttribute("aria-pressed", "true");
    wishSoon();
  });
  lock.addEventListener("click", () => lock.setAttribute("aria-pressed", String(!isLocked())));
  $("dice").addEventListener("click", () => {
    rollSeed();
    wishNow();
  });
  $("copy-curl").addEventListener("click", (event) =>
    copyFrom(event.currentTarget, curlCommand(readWish(), location.origin)));
  $("copy-link").addEventListener("click", (event) => {
    writeHash(readWish());
    copyFrom(event.currentTarget, location.href);
  });
  addEventListener("hashchange", () => {
    followAddress();
    wishNow();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, textarea")) return;
    event.preventDefault();
    prompt.focus();
  });
}

async function start() {
  try {
    model = await readModel();
  } catch (error) {
    say(`${error.message} Trying again.`, "service");
    setTimeout(start, NOTICE_MS);
    return;
  }
  showModel();
  prompt.value ||= model.examples[0] ?? "";
  followAddress();
  wishNow();
}

rollSeed();
listen();
start();
