// The stage: one picture or a grid of them, what they took, and problems told politely.

import { fileName } from "/playground/share.js";

const PACE_WINDOW_MS = 1500;

const $ = (id) => document.getElementById(id);
let numStarted = 0;
let numShown = 0;
let shownAtMs = [];

/** Put a picture on the stage, unless a newer one got there first. */
export async function showPicture(wish, answer) {
  const turn = ++numStarted;
  const url = URL.createObjectURL(answer.blob);
  const isDecoded = await decode(url);
  if (!isDecoded || turn < numShown) {
    URL.revokeObjectURL(url);
    if (!isDecoded) say("The answer was no picture.", "service");
    return false;
  }
  numShown = turn;
  const picture = $("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = url;
  picture.alt = wish.prompt;
  picture.hidden = false;
  $("grid").hidden = true;
  Object.assign($("save"), { href: url, hidden: false, download: fileName(wish, answer.blob) });
  showTimes(answer);
  showPace();
  say("");
  return true;
}

/** Put several pictures on the stage; `onChoose(seed)` hears of a click. */
export function showGrid(wish, answer, onChoose) {
  numShown = ++numStarted;
  const cells = answer.pictures.map(({ seed, blob }) => {
    const cell = document.createElement("button");
    Object.assign(cell, { type: "button", title: `Take seed ${seed}` });
    cell.setAttribute("aria-label", `${wish.prompt}, seed ${seed}`);
    const picture = new Image();
    picture.alt = "";
    picture.src = URL.createObjectURL(blob);
    cell.append(picture);
    cell.addEventListener("click", () => onChoose(seed));
    return cell;
  });
  const grid = $("grid");
  const index = [...grid.children].indexOf(document.activeElement);
  for (const old of grid.querySelectorAll("img")) URL.revokeObjectURL(old.src);
  grid.replaceChildren(...cells);
  grid.dataset.prompt = wish.prompt;
  grid.dataset.count = cells.length;
  grid.hidden = false;
  $("picture").hidden = true;
  $("save").hidden = true;
  cells[index]?.focus();
  showTimes(answer);
  showPace();
  say("");
}

export function setBusy(isBusy) {
  $("stage").setAttribute("aria-busy", String(isBusy));
}

/** Tell of a problem: `source` names the field, and the last good picture stays. */
export function say(message, source) {
  if ($("message").textContent !== message) $("message").textContent = message;
  $("stage").classList.toggle("stale", Boolean(source));
  for (const field of ["prompt", "seed"]) {
    $(field).setAttribute("aria-invalid", String(source === field));
  }
}

/** Whether pictures come over the realtime connection. */
export function showChannel(isLive) {
  $("channel").classList.toggle("live", isLive);
  $("channel").textContent = isLive ? "Live" : "HTTP";
  $("channel").title = isLive
    ? "Pictures come over one open connection"
    : "Each picture is a request of its own; the open connection is being tried again";
}

async function decode(url) {
  const picture = new Image();
  picture.src = url;
  return picture.decode().then(() => true, () => false);
}

function showTimes({ roundTripMs, queueMs, runMs }) {
  $("round-trip").textContent = formatMs(roundTripMs);
  $("queue").textContent = formatMs(queueMs);
  $("run").textContent = formatMs(runMs);
}

/** Frames per second, as far as there is a flow of them. */
function showPace() {
  const nowMs = performance.now();
  shownAtMs = [...shownAtMs.filter((atMs) => nowMs - atMs < PACE_WINDOW_MS), nowMs];
  const spanMs = nowMs - shownAtMs[0];
  $("pace").textContent = shownAtMs.length > 3 ? ((1000 * (shownAtMs.length - 1)) / spanMs).toFixed(0) : "–";
}

function formatMs(ms) {
  return ms === undefined ? "–" : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}
