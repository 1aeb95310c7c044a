// Ways out of the page: its address, which keeps prompt, seed and steps, and the clipboard.

/** Write what is shown into the address, without a new entry in the history. */
export function writeHash({ prompt, seed, steps }) {
  const hash = new URLSearchParams({ prompt, seed, ...(steps > 1 && { steps }) });
  history.replaceState(null, "", `#${hash}`);
}

/** What the address asks for: { prompt, seed, steps }, each a text or null. */
export function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  return { prompt: hash.get("prompt"), seed: hash.get("seed"), steps: hash.get("steps") };
}

/** Copy a text; false when the browser does not allow it. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https the modern way is closed everywhere but on localhost.
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return isCopied;
}

/** A file name that tells what the picture shows. */
export function fileName({ prompt, seed }, blob) {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["onestep"];
  return `${words.slice(0, 8).join("-")}-${seed}.${blob.type.split("/")[1]}`;
}

/** Hand a picture to the browser's downloads. */
export function download(wish, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = fileName(wish, blob);
  link.click();
  // The download has its own hold on the picture by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
