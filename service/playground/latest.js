// Newest wins. Owns the order of requests: at most one in flight, and one, the newest, waiting.
// Knows nothing of HTTP or of the page.
//
// Answers come one after another, so an older one can never overwrite a newer one. A request that
// a newer wish has overtaken may still finish within `patienceMs` of its start (its picture shows
// that the page follows the typing) and is aborted after that.

export class Latest {
  #run;
  #patienceMs;
  #waiting = null;
  #flight = null;
  #startTimer;
  #abortTimer;
  #notBeforeMs = 0;

  /** `run(wish, signal)` resolves to the milliseconds after which to try again, or to nothing. */
  constructor(run, patienceMs) {
    this.#run = run;
    this.#patienceMs = patienceMs;
  }

  /** Wish for something: replaces whatever was waiting. */
  ask(wish) {
    this.#waiting = { wish };
    this.#next();
  }

  /** Wish for nothing any more. */
  cancel() {
    this.#waiting = null;
    this.#flight?.controller.abort();
  }

  #next() {
    clearTimeout(this.#startTimer);
    if (!this.#waiting) return;
    if (this.#flight) {
      this.#abortInTime();
      return;
    }
    const waitMs = this.#notBeforeMs - performance.now();
    if (waitMs > 0) {
      this.#startTimer = setTimeout(() => this.#next(), waitMs);
      return;
    }
    const { wish } = this.#waiting;
    this.#waiting = null;
    this.#fly(wish);
  }

  #abortInTime() {
    const { controller, startedMs } = this.#flight;
    const leftMs = startedMs + this.#patienceMs - performance.now();
    clearTimeout(this.#abortTimer);
    this.#abortTimer = setTimeout(() => controller.abort(), Math.max(0, leftMs));
  }

  async #fly(wish) {
    const controller = new AbortController();
    this.#flight = { controller, startedMs: performance.now() };
    try {
      const retryMs = await this.#run(wish, controller.signal);
      if (retryMs > 0 && !controller.signal.aborted) {
        this.#notBeforeMs = performance.now() + retryMs;
        this.#waiting ??= { wish };
      }
    } finally {
      clearTimeout(this.#abortTimer);
      this.#flight = null;
      this.#next();
    }
  }
}
