// The page: joins controls, sources, the way to the service and the stage.

import { generateSeveral, Problem } from "/playground/api.js";
import {
  chooseView, fitControls, isLocked, isSeedValid, limitSteps, MAX_SEED, readControls, readView,
  rollSeed, setLocked, showPromptState, writeControls,
} from "/playground/controls.js";
import { Gate } from "/playground/gate.js";
import { History } from "/playground/history.js";
import { listenForKeys } from "/playground/keys.js";
import { Latest } from "/playground/latest.js";
import { Live } from "/playground/live.js";
import { readHash, writeHash } from "/playground/share.js";
import { listenToSharing } from "/playground/sharing.js";
import { Source } from "/playground/source.js";
import { say, setBusy, showChannel, showGrid, showPicture } from "/playground/stage.js";

const PAUSE_MS = 20;
const GRID_PATIENCE_MS = 600;
const SETTLED_MS = 900;
// A small picture is shown far larger than it is, and every trace of compression with it.
const MAX_EXACT_PX = 256;

const $ = (id) => document.getElementById(id);
const prompt = $("prompt");
const live = new Live({
  onPicture: showAnswer,
  onProblem: tell,
  onBusy: setBusy,
  onChannel: showChannel,
});
const grids = new Latest(drawGrid, GRID_PATIENCE_MS);
const source = new Source(wishSoon);
const strip = new History($("history"), recall);
const gate = new Gate({ onLeave: leave, onEnter: enter });

let model;
let format;
let typingTimer;
let settledTimer;
let shown = null; // the picture on the stage: { wish, blob }

// From controls to wishes

function readWish() {
  limitSteps(source.maxSteps);
  return { ...readControls(), ...source.read() };
}

function wishSoon() {
  showPromptState();
  // What goes on all the time, like a stroke, must not put the wish off for ever.
  typingTimer ??= setTimeout(wishNow, PAUSE_MS);
}

function wishNow() {
  clearTimeout(typingTimer);
  typingTimer = undefined;
  clearTimeout(settledTimer);
  showPromptState();
  if (!model || gate.isClosed) return;
  if (!readControls().prompt || !isSeedValid()) {
    live.cancel();
    grids.cancel();
    if (isSeedValid()) say("");
    else say(`Seed is a whole number from 0 to ${MAX_SEED}.`, "seed");
    return;
  }
  if (!isLocked()) rollSeed();
  const wish = readWish();
  if (readView() === 1) {
    grids.cancel();
    live.ask({ ...wish, ...format });
  } else {
    live.cancel();
    grids.ask({ wish, numImages: readView() });
  }
}

// From answers to the screen

async function showAnswer(wish, answer) {
  const isShown = await showPicture(wish, answer);
  goOn();
  if (!isShown) return;
  shown = { wish, blob: answer.blob };
  settleSoon(wish);
}

async function drawGrid({ wish, numImages }, signal) {
  setBusy(true);
  try {
    const answer = await generateSeveral(wish, numImages, signal);
    if (signal.aborted) return undefined;
    showGrid(wish, answer, takeSeed);
    settleSoon(wish);
  } catch (error) {
    if (signal.aborted) return undefined;
    if (!(error instanceof Problem)) throw error;
    tell(error);
    return error.retryMs;
  } finally {
    setBusy(false);
  }
  goOn();
  return undefined;
}

/** The camera's next picture is sent when the last one has come back. */
function goOn() {
  if (source.isMoving && !document.hidden) wishNow();
}

function tell(problem) {
  if (problem.isKeyAsked) {
    gate.close(problem.message);
    return;
  }
  const { message, retryMs, field } = problem;
  const again = retryMs ? ` Trying again in ${Math.ceil(retryMs / 1000)} s.` : "";
  say(message + again, field ?? "service");
}

/** Once nothing has changed for a while: the address, the strip, and a word for screen readers. */
function settleSoon(wish) {
  clearTimeout(settledTimer);
  settledTimer = setTimeout(() => {
    writeHash(wish);
    const what = readView() === 1 ? "Drawn" : `${readView()} pictures drawn`;
    $("announce").textContent = `${what}: ${wish.prompt}, seed ${wish.seed}`;
    if (readView() === 1 && shown && !source.isMoving) strip.add(shown.wish, shown.blob);
  }, SETTLED_MS);
}

function takeSeed(seed) {
  writeControls({ seed });
  setLocked(true);
  view(1);
  document.querySelector("input[name=view]:checked").focus();
}

function recall(wish, blob) {
  live.cancel();
  grids.cancel();
  writeControls(wish);
  setLocked(true);
  chooseView(1);
  showPicture(wish, { blob });
  shown = { wish, blob };
  writeHash(wish);
}

function view(numPictures) {
  chooseView(numPictures);
  wishNow();
}

function roll() {
  rollSeed();
  wishNow();
}

function toggleLock() {
  setLocked(!isLocked());
}

function followAddress() {
  writeControls(readHash());
}

// Start

function listenToControls() {
  prompt.addEventListener("input", (event) => event.isComposing || wishSoon());
  prompt.addEventListener("compositionend", wishSoon);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Escape") prompt.blur();
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    wishNow();
  });
  $("seed").addEventListener("input", () => {
    setLocked(true);
    wishSoon();
  });
  $("lock").addEventListener("click", toggleLock);
  $("dice").addEventListener("click", roll);
  for (const radio of document.querySelectorAll("input[name=view]")) {
    radio.addEventListener("change", wishNow);
  }
  addEventListener("visibilitychange", goOn);
  addEventListener("hashchange", () => {
    followAddress();
    wishNow();
  });
}

const start = (mode) => () => source.isOffered && source.choose(mode);

function leave() {
  live.leave();
  grids.cancel();
}

function enter(offered) {
  fit(offered);
  live.connect();
  wishNow();
}

function fit(offered) {
  // A drawing that was begun outlives another key.
  if (JSON.stringify(offered) === JSON.stringify(model)) return;
  model = offered;
  const isSmall = Math.max(...model.sizes[0]) <= MAX_EXACT_PX;
  format = isSmall ? { format: "png" } : { format: "jpeg", quality: 90 };
  fitControls(model, wishNow);
  source.fit(model);
  prompt.value ||= model.examples[0] ?? "";
  // The rest of the address stands in the controls already, and may have been changed there since.
  writeControls({ steps: readHash().steps });
}

rollSeed();
followAddress();
listenToControls();
source.listenForFiles();
const sharing = listenToSharing({
  readWish,
  readShown: () => shown,
  readSize: () => model.sizes[0],
});
listenForKeys({
  "/": () => prompt.focus(),
  r: roll,
  l: toggleLock,
  1: () => view(1),
  4: () => view(4),
  9: () => view(9),
  w: start("words"),
  d: start("drawing"),
  c: start("camera"),
  z: () => source.undo(),
  s: sharing.save,
  k: sharing.copyLink,
});
gate.enter();
