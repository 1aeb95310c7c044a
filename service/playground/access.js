// The API key of this tab: where it is kept, and how it travels. Knows no page.
//
// It lives in the tab's own storage, so that a reload keeps it and the tab's end forgets it. It
// travels in a header, or as a subprotocol where a browser can send none: never in an address,
// which ends up in logs.

const STORED_AS = "onestep.key";
// What both ways can carry: a header's value takes no line breaks, a subprotocol only these.
const FORM = /^[\w.~-]+$/;

let key = readStored();
let isTrusted = key !== null;

export function hasKey() {
  return key !== null;
}

/** Try a key from now on; false where no service could have given it out. */
export function useKey(text) {
  const trimmed = text.trim();
  if (!FORM.test(trimmed)) return false;
  key = trimmed;
  isTrusted = false;
  return true;
}

/** The service has taken the key: only then is it stored. */
export function trustKey() {
  if (key === null || isTrusted) return;
  isTrusted = true;
  try {
    sessionStorage.setItem(STORED_AS, key);
  } catch {
    // Forbidden: the key then lasts as long as the page.
  }
}

export function forgetKey() {
  key = null;
  isTrusted = false;
  try {
    sessionStorage.removeItem(STORED_AS);
  } catch {
    // Where nothing can be stored, nothing was.
  }
}

/** For a request. */
export function keyHeaders() {
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

/** For a WebSocket. */
export function keySubprotocols() {
  return key === null ? [] : ["onestep", `key.${key}`];
}

function readStored() {
  try {
    return sessionStorage.getItem(STORED_AS);
  } catch {
    return null;
  }
}
