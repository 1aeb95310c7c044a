// The strip of pictures drawn before: in memory, and in the tab's storage so that a reload keeps it.

import { fromBase64 } from "/playground/api.js";

const KEY = "onestep.history";
const MAX_ENTRIES = 24;
const MAX_STORED_BYTES = 65_536;

export class History {
  #list;
  #onChoose;
  #entries = []; // newest first: { wish, blob, url }

  /** `onChoose(wish, blob)` hears of a click. */
  constructor(list, onChoose) {
    this.#list = list;
    this.#onChoose = onChoose;
    for (const { wish, picture, type } of readStored()) {
      this.#entries.push({ wish, blob: fromBase64(picture, type) });
    }
    this.#show();
  }

  /** Remember a picture; of the same words, seed, steps and kind of start the newest is kept. */
  async add(wish, blob) {
    // What a picture started from is not kept: it would make the strip heavy.
    const { prompt, seed, steps, image } = wish;
    const kept = { prompt, seed, steps, isFromPicture: Boolean(image) };
    const isSame = (entry) => JSON.stringify(entry.wish) === JSON.stringify(kept);
    const others = this.#entries.filter((entry) => !isSame(entry));
    this.#entries = [{ wish: kept, blob }, ...others].slice(0, MAX_ENTRIES);
    this.#show();
    await this.#store();
  }

  #show() {
    for (const picture of this.#list.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
    this.#list.replaceChildren(...this.#entries.map(({ wish, blob }) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", title: `${wish.prompt} · ${wish.seed}` });
      button.setAttribute("aria-label", `${wish.prompt}, seed ${wish.seed}`);
      button.addEventListener("click", () => this.#onChoose(wish, blob));
      const picture = new Image();
      picture.alt = "";
      picture.src = URL.createObjectURL(blob);
      button.append(picture);
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    this.#list.closest("section").hidden = this.#entries.length === 0;
  }

  async #store() {
    const small = this.#entries.filter(({ blob }) => blob.size <= MAX_STORED_BYTES);
    const stored = await Promise.all(small.map(async ({ wish, blob }) => ({
      wish,
      picture: await toBase64(blob),
      type: blob.type,
    })));
    try {
      sessionStorage.setItem(KEY, JSON.stringify(stored));
    } catch {
      // Full or forbidden: the strip then lasts as long as the page.
    }
  }
}

function readStored() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}

async function toBase64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
