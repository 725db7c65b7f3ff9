// Calls of vae.v1 over HTTP in JSON, as the Connect protocol writes them; tokens; latest-wins.

export class RpcError extends Error {
  constructor(code, message, retryAfter) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;  // seconds; 0: unknown
  }
}

let token = "";  // in memory only
let asking = null;
export const hasToken = () => Boolean(token);
const listeners = new Set();

/** Tell `listener` of each call's end: {ok, method, seconds, servedBy, error}. */
export function onCall(listener) { listeners.add(listener); }

function report(outcome) { for (const listener of listeners) listener(outcome); }

/** Call a method; returns the response as JSON. Throws RpcError. */
export async function call(method, request) {
  for (;;) {
    const started = performance.now();
    const used = token;
    let response, body;
    try {
      response = await fetch(`/vae.v1.VaeService/${method}`, {
        method: "POST",
        headers: {
          "content-type": "application/json",
          "connect-protocol-version": "1",
          "connect-timeout-ms": "20000",
          "latentd-priority": "background",  // whoever plays here costs no other caller anything
          ...(token && {authorization: `Bearer ${token}`}),
        },
        body: JSON.stringify(request),
      });
      body = await response.json().catch(() => ({}));
    } catch {
      const gone = new RpcError("gone", "The server does not answer.", 2);
      report({ok: false, method, error: gone});
      throw gone;
    }
    if (response.ok) {
      report({ok: true, method, seconds: (performance.now() - started) / 1000, servedBy: body.servedBy});
      return body;
    }
    if (response.status === 401 && (used !== token || await askToken())) continue;  // another call may have asked meanwhile
    const error = new RpcError(body.code ?? (response.status === 404 ? "unimplemented" : "unknown"), body.message ?? response.statusText,
      Number(response.headers.get("retry-after")) || 0);
    // Without a map the page works: an older server lacks it, a token may not allow it.
    if (error.code !== "unimplemented" && !(method === "GetMap" && error.code === "permission_denied")) report({ok: false, method, error});
    throw error;
  }
}

/** Ask for a token once, however many calls were refused. False: the user cancelled. */
function askToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token");
    const input = dialog.querySelector("input");
    input.value = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      asking = null;
      token = dialog.returnValue === "ok" ? input.value.trim() : "";
      input.value = "";
      resolve(Boolean(token));
    }, {once: true});
  });
  return asking;
}

/** Runs one job at a time. Of the jobs that arrive meanwhile only the newest is run. */
export class Latest {
  #running = false;
  #next = null;

  async run(job) {
    if (this.#running) { this.#next = job; return; }
    this.#running = true;
    try {
      for (; job; job = this.#next, this.#next = null) {
        try { await job(); } catch (error) { if (!(error instanceof RpcError)) throw error; }
      }
    } finally { this.#running = false; this.#next = null; }
  }
}

export function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text ?? ""), (c) => c.charCodeAt(0));
}

/** Latents, each a Float32Array, as a Tensor. shape: of one */
export function toTensor(rows, shape) {
  const all = new Float32Array(rows.length * rows[0].length);
  rows.forEach((row, i) => all.set(row, i * row.length));
  return {dtype: "DATA_TYPE_FLOAT32", shape: [rows.length, ...shape].map(String), data: toBase64(new Uint8Array(all.buffer))};
}

/** A Tensor's rows as typed arrays. */
export function fromTensor(tensor) {
  const bytes = fromBase64(tensor.data);
  const values = tensor.dtype === "DATA_TYPE_UINT8" ? bytes : new Float32Array(bytes.buffer);
  const rows = Number(tensor.shape?.[0] ?? 0);
  const size = rows ? values.length / rows : 0;
  return Array.from({length: rows}, (_, i) => values.subarray(i * size, (i + 1) * size));
}
