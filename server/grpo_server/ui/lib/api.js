/**
 * What the pages ask the server. The key lives in a variable of this module and goes into `Authorization` alone: a reload
 * forgets it. A refusal that passes by itself (429, 503) is waited out in sight of the user; any other becomes an ApiError.
 */
import { ROOT } from "./route.js";
import { createStore } from "./store.js";

let key = "";
/** Set while a key is asked for: what the server said, and how the form answers. */
export const keyWanted = createStore(null);
/** Set while a refusal is waited out: what the server said, and until when (ms since the epoch). */
export const waiting = createStore(null);

/** The server said no: `param` is the field at fault, `code` a word for programs, `status` 0 when nobody answered. */
export class ApiError extends Error {
  constructor(status, { message, code = null, param = null }) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, param });
  }
}

/**
 * One request. Waits for a key at 401, and for the time that the server names at 429 and 503.
 * @param {string} path  below the server's root, such as "v1/logprobs"
 * @param {{method?: string, body?: BodyInit, headers?: Object, signal?: AbortSignal, wait?: boolean}} how
 *   wait: false for what is asked again anyway, such as /metrics: a refusal is thrown at once
 * @returns {Promise<Response>} with an ok status
 */
export async function ask(path, { method = "GET", body, headers = {}, signal, wait = true } = {}) {
  for (;;) {
    const sent = key;
    const response = await answer(path, { method, body, signal, headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers });
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status === 401 && wait) {
      if (sent === key) await keyFromUser(error.message, signal);
    } else if ((response.status === 429 || response.status === 503) && response.headers.has("retry-after") && wait) {
      await countdown(error.message, Number(response.headers.get("retry-after")), signal);
    } else {
      throw error;
    }
  }
}

/** POST a value as JSON and read JSON. */
export async function askJson(path, value, how = {}) {
  const sent = value === undefined ? {} : { method: "POST", body: JSON.stringify(value) };
  const headers = { "Content-Type": "application/json", ...how.headers };
  return (await ask(path, { ...sent, ...how, headers })).json();
}

/** What the form calls with what was typed. */
export function giveKey(typed) {
  key = typed.trim();
  keyWanted.get()?.given();
}

async function answer(path, how) {
  try {
    return await fetch(new URL(path, ROOT), { ...how, cache: "no-store", redirect: "error", credentials: "same-origin" });
  } catch (error) {
    if (how.signal?.aborted) throw error;
    throw new ApiError(0, { message: "The server does not answer. Is it running?", code: "no_answer" });
  }
}

async function refusal(response) {
  const text = await response.text();
  try {
    return new ApiError(response.status, JSON.parse(text).error);
  } catch {
    return new ApiError(response.status, { message: text.slice(0, 300) || response.statusText });
  }
}

function keyFromUser(message, signal) {
  let asked = keyWanted.get();
  if (!asked) {
    const { promise, resolve } = withResolvers();
    asked = { message, promise, given: () => (keyWanted.set(null), resolve()) };
    keyWanted.set(asked);
  }
  return orAborted(asked.promise, signal);
}

async function countdown(message, seconds, signal) {
  const pause = Math.max(1, seconds || 1) * 1000;
  const mine = { message, until: Date.now() + pause };
  waiting.set(mine);
  try {
    await orAborted(new Promise((resolve) => setTimeout(resolve, pause)), signal);
  } finally {
    if (waiting.get() === mine) waiting.set(null);
  }
}

function withResolvers() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}

function orAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const leave = () => reject(signal.reason);
    if (signal.aborted) return leave();
    signal.addEventListener("abort", leave, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", leave));
  });
}
