// The realtime connection: opens it, opens it again, takes its messages apart. Knows no page.

import { keySubprotocols } from "/playground/access.js";

const PATH = "/v1/realtime";
const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 30_000;

export class Realtime {
  #listener;
  #socket = null;
  #retryTimer;
  #numFailures = 0;

  /** `listener` has `onOpen()`, `onPicture(header, blob)`, `onMessage(message)`, `onClose()`. */
  constructor(listener) {
    this.#listener = listener;
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Connect, unless that is under way or waits for its time. */
  open() {
    if (this.#socket || this.#retryTimer) return;
    const url = new URL(PATH, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, keySubprotocols());
    socket.binaryType = "arraybuffer";
    socket.addEventListener("message", ({ data }) => socket === this.#socket && this.#read(data));
    socket.addEventListener("close", ({ code }) => socket === this.#socket && this.#closed(code));
    this.#socket = socket;
  }

  /** Leave at once, and do not come back before `open` is called. */
  leave() {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    this.#numFailures = 0;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #read(data) {
    if (data instanceof ArrayBuffer) {
      const { header, blob } = readFrame(data);
      this.#listener.onPicture(header, blob);
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "hello") {
      this.#numFailures = 0;
      this.#listener.onOpen();
    } else {
      this.#listener.onMessage(message);
    }
  }

  #closed(code) {
    this.#socket = null;
    // After a silence the service hangs up; the next wish connects again.
    if (code !== 1000) {
      const waitMs = Math.min(FIRST_RETRY_MS * 2 ** this.#numFailures++, MAX_RETRY_MS);
      this.#retryTimer = setTimeout(() => {
        this.#retryTimer = undefined;
        this.open();
      }, waitMs);
    }
    this.#listener.onClose();
  }
}

/** Four bytes of length, a header as JSON, a picture. */
function readFrame(buffer) {
  const numBytes = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, numBytes)));
  const picture = new Uint8Array(buffer, 4 + numBytes);
  return { header, blob: new Blob([picture], { type: `image/${header.format}` }) };
}
