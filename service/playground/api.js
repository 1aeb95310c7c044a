// The service's wire format as the page sees it. Knows nothing of the page.

import { hasKey, keyHeaders } from "/playground/access.js";

const GENERATE_PATH = "/v1/generate";
const UNREACHABLE_RETRY_MS = 3000;
const MAX_RETRY_MS = 60_000;
const UNAUTHORIZED = 401;

/**
 * An answer other than a picture; `retryMs` is set when asking again later makes sense, and
 * `isKeyAsked` when asking makes sense with another API key only.
 */
export class Problem extends Error {
  constructor(detail, { field, retryMs, isKeyAsked = false } = {}) {
    super(detail);
    this.field = field;
    this.retryMs = retryMs;
    this.isKeyAsked = isKeyAsked;
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
    headers: { "content-type": "application/json", accept: "image/*" },
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

/** Draw several pictures, of the seeds that follow the wish's own: [{ seed, blob }]. */
export async function generateSeveral(wish, numImages, signal) {
  const startedMs = performance.now();
  const init = {
    method: "POST",
    headers: { "content-type": "application/json", accept: "application/json" },
    body: JSON.stringify({ ...wish, num_images: numImages, format: "jpeg" }),
    signal,
  };
  const { body } = await ask(GENERATE_PATH, init, "json");
  return {
    pictures: body.images.map(({ seed, b64_json, media_type }) => ({
      seed,
      blob: fromBase64(b64_json, media_type),
    })),
    roundTripMs: performance.now() - startedMs,
    queueMs: body.timing.queue_ms,
    runMs: body.timing.run_ms,
  };
}

export function fromBase64(text, type) {
  return new Blob([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))], { type });
}

/** The shell command that draws the same picture. A key is named by its variable, never shown. */
export function curlCommand(wish, origin) {
  // Inside single quotes a shell leaves everything alone but the quote itself.
  const body = JSON.stringify(wish).replaceAll("'", "'\\''");
  return [
    `curl -sS '${origin}${GENERATE_PATH}'`,
    "-H 'content-type: application/json' -H 'accept: image/png'",
    ...(hasKey() ? ['-H "Authorization: Bearer $ONESTEP_API_KEY"'] : []),
    `-d '${body}' -o picture.png`,
  ].join(" \\\n  ");
}

/** The program that draws the same picture, with the `openai` client. As for the key, as above. */
export function pythonProgram(wish, [width, height], origin) {
  const { prompt, seed, steps, image, strength } = wish;
  const more = { seed, num_inference_steps: steps, ...(image && { strength }) };
  const method = image ? "edit" : "generate";
  const start = image ? `\n    image=("start.jpg", b64decode("${image}")),` : "";
  const [needed, key] = hasKey() ? ["import os\n", 'os.environ["ONESTEP_API_KEY"]'] : ["", '"none"'];
  // JSON's strings, numbers and objects are Python's.
  return `${needed}from base64 import b64decode

from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=${key})
answer = client.images.${method}(${start}
    prompt=${JSON.stringify(prompt)},
    size="${width}x${height}",
    extra_body=${JSON.stringify(more)},
)
with open("picture.png", "wb") as file:
    file.write(b64decode(answer.data[0].b64_json))
`;
}

async function ask(path, init, form) {
  try {
    const headers = { ...init.headers, ...keyHeaders() };
    const response = await fetch(path, { ...init, headers });
    if (!response.ok) throw await readProblem(response);
    return { headers: response.headers, body: await response[form]() };
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem("The service can't be reached.", { retryMs: UNREACHABLE_RETRY_MS });
  }
}

async function readProblem(response) {
  const body = await response.json().catch(() => ({}));
  // Some paths answer in OpenAI's form.
  const told = body.detail || body.error?.message || body.title;
  return new Problem(asSentence(told || `the service answered ${response.status}`), {
    field: body.field,
    retryMs: readRetryMs(response.headers),
    isKeyAsked: response.status === UNAUTHORIZED,
  });
}

export function asSentence(text) {
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
