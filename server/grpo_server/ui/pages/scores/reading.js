/** Files to samples, with progress; plain or gzip. */
import { LineError, readRecords } from "./records.js";

/** Read files as they are dropped. Anything a worker cannot be is refused with a sentence. */
const LARGEST = 512 * 2 ** 20;
const HERE = new URL("./", import.meta.url).href;
// A worker's address counts as script: this policy lets through the one that lies beside this file.
const policy = globalThis.trustedTypes?.createPolicy("grpo-refserver-worker", {
  createScriptURL: (url) => {
    if (url !== `${HERE}reading.worker.js`) throw new TypeError(`${url} is no worker of this page`);
    return url;
  },
});

/**
 * @param {Blob} file
 * @param {string} name
 * @param {{mapping?: Object, tell?: (share: number) => void, signal?: AbortSignal}} how
 * @returns {Promise<{samples: import("./records.js").Samples, lines: string}>}
 */
export async function readFile(file, name, { mapping = {}, tell, signal } = {}) {
  if (file.size > LARGEST) throw new LineError(`${name} has ${file.size} bytes; the page takes up to ${LARGEST}: cut it by steps`);
  const lines = await textOf(file, name);
  const bundle = bundleOf(lines);
  if (bundle) return { samples: readRecords(bundle.records, name), lines: bundle.records.map((r) => `${JSON.stringify(r)}\n`).join(""), bundle };
  return { samples: await inWorker(lines, name, mapping, tell, signal), lines };
}

async function textOf(file, name) {
  const head = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  if (head[0] !== 0x1f || head[1] !== 0x8b) return file.text();
  try {
    return await new Response(file.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  } catch {
    throw new LineError(`${name}: the gzip data break off, or are none`);
  }
}

/** What `exporting.js` wrote; null for any other text. */
function bundleOf(text) {
  if (!text.startsWith('{"kind":"grpo-refserver bundle"')) return null;
  return JSON.parse(text);
}

function inWorker(text, name, mapping, tell, signal) {
  return new Promise((resolve, reject) => {
    const url = `${HERE}reading.worker.js`;
    const worker = new Worker(policy ? policy.createScriptURL(url) : url, { type: "module" });
    const end = (settle, value) => (worker.terminate(), settle(value));
    worker.onmessage = ({ data }) => {
      if (data.share !== undefined) tell?.(data.share);
      else if (data.refused !== undefined) end(reject, new LineError(data.refused, data.fields));
      else end(resolve, data.samples);
    };
    worker.onerror = (event) => end(reject, new LineError(`${name} could not be read: ${event.message || "the reader failed"}`));
    signal?.addEventListener("abort", () => end(reject, signal.reason), { once: true });
    worker.postMessage({ text, name, mapping });
  });
}
