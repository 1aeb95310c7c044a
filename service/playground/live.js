// Where wishes go: over the realtime connection while it is open, else by POST. Owns their order:
// whatever way an answer takes, nothing is shown after something newer. Knows no page.

import { asSentence, generate, Problem } from "/playground/api.js";
import { Latest } from "/playground/latest.js";
import { Realtime } from "/playground/realtime.js";

const PATIENCE_MS = 300;

export class Live {
  #listener;
  #realtime;
  #posts;
  #numAsked = 0;
  #numShown = 0;
  #out = new Map(); // number of a wish on the connection -> { wish, sentMs }
  #held = null; // a wish with a picture, until the one before it is answered
  #retryTimer;

  /** `listener` has `onPicture(wish, answer)`, `onProblem(problem)`, `onBusy(is)`, `onChannel(is)`. */
  constructor(listener) {
    this.#listener = listener;
    this.#posts = new Latest((entry, signal) => this.#post(entry, signal), PATIENCE_MS);
    this.#realtime = new Realtime({
      onOpen: () => listener.onChannel(true),
      onPicture: (header, blob) => this.#answered(header, blob),
      onMessage: (message) => this.#told(message),
      onClose: () => this.#closed(),
    });
  }

  /** Open the realtime connection; wishes until then go by POST. */
  connect() {
    this.#realtime.open();
  }

  /** Show nothing that has been asked so far, and leave the connection. */
  leave() {
    this.cancel();
    this.#realtime.leave();
    this.#listener.onChannel(false);
  }

  ask(wish) {
    clearTimeout(this.#retryTimer);
    const entry = { number: ++this.#numAsked, wish };
    if (!this.#realtime.isOpen) {
      this.#realtime.open();
      this.#posts.ask(entry);
    } else if (wish.image && this.#out.size) {
      // Words are sent at once: the service keeps the newest. Pictures would fill the line.
      this.#held = entry;
    } else {
      this.#send(entry);
    }
  }

  /** Show nothing that has been asked so far. */
  cancel() {
    clearTimeout(this.#retryTimer);
    this.#numShown = this.#numAsked;
    this.#held = null;
    this.#posts.cancel();
    this.#out.clear();
    this.#listener.onBusy(false);
  }

  #send({ number, wish }) {
    this.#held = null;
    this.#out.set(number, { wish, sentMs: performance.now() });
    this.#listener.onBusy(true);
    this.#realtime.send({ id: number, ...wish });
  }

  #answered(header, blob) {
    const { wish, sentMs } = this.#out.get(header.id) ?? {};
    this.#settle(header.id);
    if (!wish) return;
    this.#show(header.id, wish, {
      blob,
      roundTripMs: performance.now() - sentMs,
      queueMs: header.queue_ms,
      runMs: header.run_ms,
    });
  }

  #told(message) {
    const wish = this.#out.get(message.id)?.wish;
    const retryMs = message.retry_after_ms;
    if (message.type === "waiting") {
      this.#listener.onProblem(new Problem("The queue is full.", { retryMs }));
      return;
    }
    this.#settle(message.id);
    if (!wish || message.id < this.#numAsked) return;
    const detail = asSentence(message.detail);
    this.#listener.onProblem(new Problem(detail, { field: message.field, retryMs }));
    if (retryMs) this.#retryTimer = setTimeout(() => this.ask(wish), retryMs);
  }

  /** What was sent before an answered wish has been dropped for it. */
  #settle(number) {
    for (const sent of this.#out.keys()) {
      if (sent <= number) this.#out.delete(sent);
    }
    if (this.#held) this.#send(this.#held);
    else this.#listener.onBusy(this.#out.size > 0);
  }

  #closed() {
    this.#listener.onChannel(false);
    const last = this.#held?.wish ?? [...this.#out.values()].at(-1)?.wish;
    this.#out.clear();
    this.#held = null;
    this.#listener.onBusy(false);
    if (last) this.ask(last);
  }

  async #post({ number, wish }, signal) {
    this.#listener.onBusy(true);
    try {
      this.#show(number, wish, await generate(wish, signal));
    } catch (error) {
      if (signal.aborted) return undefined;
      if (!(error instanceof Problem)) throw error;
      if (number === this.#numAsked) this.#listener.onProblem(error);
      return error.retryMs;
    } finally {
      this.#listener.onBusy(this.#out.size > 0);
    }
    return undefined;
  }

  #show(number, wish, answer) {
    if (number <= this.#numShown) return;
    this.#numShown = number;
    this.#listener.onPicture(wish, answer);
  }
}
