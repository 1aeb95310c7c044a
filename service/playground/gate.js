// The gate: learns of the model with whatever API key there is, and asks for one where it must.
// Owns the key's field and row. Knows nothing of pictures.

import { forgetKey, hasKey, trustKey, useKey } from "/playground/access.js";
import { Problem, readModel } from "/playground/api.js";
import { say } from "/playground/stage.js";

const RETRY_MS = 2000;

const $ = (id) => document.getElementById(id);
const form = $("gate");
const field = $("api-key");
const row = $("key-row");
const settings = document.querySelector(".tune");

export class Gate {
  #listener;
  #retryTimer;
  #numTries = 0;

  /** `listener` has `onLeave()`, when nothing may be asked for now, and `onEnter(model)`. */
  constructor(listener) {
    this.#listener = listener;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    // What was wrong with the last key says nothing of the one that is being typed.
    field.addEventListener("input", () => tell(""));
    $("forget-key").addEventListener("click", () => {
      forgetKey();
      this.enter();
    });
  }

  /** Whether nothing can be drawn until there is another key. */
  get isClosed() {
    return !form.hidden;
  }

  /** Learn of the model: at the start, and with every other key. */
  async enter() {
    clearTimeout(this.#retryTimer);
    const turn = ++this.#numTries;
    this.#listener.onLeave();
    let model;
    try {
      model = await readModel();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (turn === this.#numTries) this.#refused(error);
      return;
    }
    if (turn !== this.#numTries) return;
    trustKey();
    this.#open();
    this.#listener.onEnter(model);
  }

  /** Ask for a key: the service refuses to do without, or refuses the one there was. */
  close(refusal) {
    // Nobody is torn away from what they are typing.
    const isFree = [form, row].some((part) => part.contains(document.activeElement))
      || document.activeElement === document.body;
    const words = hasKey() ? refusal : "";
    this.#listener.onLeave();
    forgetKey();
    form.hidden = false;
    row.hidden = true;
    settings.inert = true;
    say("");
    tell(words);
    if (isFree) field.focus();
  }

  #refused({ message, isKeyAsked }) {
    if (isKeyAsked) {
      this.close(message);
      return;
    }
    say(`${message} Trying again.`, "service");
    this.#retryTimer = setTimeout(() => this.enter(), RETRY_MS);
  }

  #open() {
    const hadFocus = form.contains(document.activeElement);
    form.hidden = true;
    settings.inert = false;
    field.value = "";
    row.hidden = !hasKey();
    if (hadFocus) $("prompt").focus();
  }

  #submit() {
    const isTyped = field.value.trim() !== "";
    if (isTyped && useKey(field.value)) this.enter();
    else tell(isTyped ? "No API key has such characters." : "Type or paste a key first.");
  }
}

/** Say by the field what is wrong with the key. */
function tell(text) {
  $("gate-message").textContent = text;
  field.setAttribute("aria-invalid", String(text !== ""));
}
