// The row of ways out of the page: link, curl, Python, a file.

import { curlCommand, generate, pythonProgram } from "/playground/api.js";
import { copy, download, writeHash } from "/playground/share.js";

const NOTICE_MS = 2000;

const $ = (id) => document.getElementById(id);

/**
 * Make the row work: `readWish()` is what the controls say, `readShown()` what is on the stage,
 * `readSize()` the model's size. Returns what shortcuts may call.
 */
export function listenToSharing({ readWish, readShown, readSize }) {
  const copyLink = () => {
    writeHash(readWish());
    copyFrom($("copy-link"), location.href);
  };
  const save = () => saveExact(readShown());
  $("copy-link").addEventListener("click", copyLink);
  $("copy-curl").addEventListener("click", ({ currentTarget }) =>
    copyFrom(currentTarget, curlCommand(readWish(), location.origin)));
  $("copy-python").addEventListener("click", ({ currentTarget }) =>
    copyFrom(currentTarget, pythonProgram(readWish(), readSize(), location.origin)));
  $("save").addEventListener("click", (event) => {
    event.preventDefault();
    save();
  });
  return { copyLink, save };
}

async function saveExact(shown) {
  if (!shown) return;
  // What moves over the stage may be JPEG; what is kept should be exact.
  const { prompt, seed, steps, image, strength, isFromPicture } = shown.wish;
  const wish = { prompt, seed, steps, ...(image && { image, strength }) };
  // Out of the strip comes a picture without what it started from: that one cannot be drawn again.
  const isExact = shown.blob.type === "image/png" || isFromPicture;
  const { blob } = isExact ? shown : await generate({ ...wish, format: "png" }).catch(() => shown);
  download(wish, blob);
}

async function copyFrom(button, text) {
  button.dataset.label ??= button.textContent;
  button.textContent = (await copy(text)) ? "Copied" : "Copying is not allowed here";
  setTimeout(() => { button.textContent = button.dataset.label; }, NOTICE_MS);
}
