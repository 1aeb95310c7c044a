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
  const response = await ask("/v1/models", {});
  return (await response.json()).data[0];
}

/** Draw one picture: { blob, roundTripMs, queueMs, runMs }. */
export async function generate(wish, signal) {
  const startedMs = performance.now();
  const response = await ask(GENERATE_PATH, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "image/png" },
    body: JSON.stringify(wish),
    signal,
  });
  const blob = await response.blob();
  return {
    blob,
    roundTripMs: performance.now() - startedMs,
    queueMs: readMs(response, "x-onestep-queue-ms"),
    runMs: readMs(response, "x-onestep-run-ms"),
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

async function ask(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service can't be reached.", { retryMs: UNREACHABLE_RETRY_MS });
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

async function readProblem(response) {
  const body = await response.json().catch(() => ({}));
  const detail = body.detail || body.title || `The service answered ${response.status}.`;
  return new Problem(detail, { field: body.field, retryMs: readRetryMs(response) });
}

function readRetryMs(response) {
  const header = response.headers.get("retry-after");
  if (header === null) return undefined;
  const seconds = Number(header);
  const waitMs = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - Date.now();
  return Number.isNaN(waitMs) ? undefined : Math.min(Math.max(waitMs, 100), MAX_RETRY_MS);
}

function readMs(response, name) {
  const header = response.headers.get(name);
  return header === null ? undefined : Number(header);
}
