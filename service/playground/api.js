// The service's wire format as the page sees it. Knows nothing of the page.

const GENERATE_PATH = "/v1/generate";
const UNREACHABLE_RETRY_MS = 3000;
const MAX_RETRY_MS = 60_000;

/** An answer other than a picture; `retryMs` is set when asking again later makes sense. */
export class Problem extends Error {
  constructor(detail, { field, retryMs } = {}) {
    super(detail);
    this.field = field;
    this.retryMs = retryMs;
  }
}

/** The first model that the service offers. */
export async function readModel() {
  const { body } = await ask("/v1/models", {}, "json");
  return body.data[0];
}

/** Draw one picture: { blob, roundTripMs, queueMs, runMs }. */
export async function generate(wish, signal) {
  const startedMs = performance.now();
  const init = {
    method: "POST",
    headers: { "content-type": "application/json", accept: "image/png" },
    body: JSON.stringify(wish),
    signal,
  };
  const { headers, body } = await ask(GENERATE_PATH, init, "blob");
  return {
    blob: body,
    roundTripMs: performance.now() - startedMs,
    queueMs: readMs(headers, "x-onestep-queue-ms"),
    runMs: readMs(headers, "x-onestep-run-ms"),
  };
}

/** The shell command that draws the same picture. */
export function curlCommand(wish, origin) {
  // Inside single quotes a shell leaves everything alone but the quote itself.
  const body = JSON.stringify(wish).replaceAll("'", "'\\''");
  return [
    `curl -sS '${origin}${GENERATE_PATH}'`,
    "-H 'content-type: application/json' -H 'accept: image/png'",
    `-d '${body}' -o picture.png`,
  ].join(" \\\n  ");
}

async function ask(path, init, form) {
  try {
    const response = await fetch(path, init);
    if (!response.ok) throw await readProblem(response);
    return { headers: response.headers, body: await response[form]() };
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem("The service can't be reached.", { retryMs: UNREACHABLE_RETRY_MS });
  }
}

async function readProblem(response) {
  const body = await response.json().catch(() => ({}));
  const detail = body.detail || body.title || `the service answered ${response.status}`;
  return new Problem(asSentence(detail), { field: body.field, retryMs: readRetryMs(response.headers) });
}

function asSentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function readRetryMs(headers) {
  const exactMs = Number(headers.get("retry-after-ms"));
  if (exactMs > 0) return Math.min(exactMs, MAX_RETRY_MS);
  const header = headers.get("retry-after");
  if (header === null) return undefined;
  const seconds = Number(header);
  const waitMs = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - Date.now();
  return Number.isNaN(waitMs) ? undefined : Math.min(Math.max(waitMs, 100), MAX_RETRY_MS);
}

function readMs(headers, name) {
  const header = headers.get(name);
  return header === null ? undefined : Number(header);
}
