/** Samples scored by this server: groups in requests of a size that shows progress, answers as tensors. */
import { ask } from "../../lib/api.js";
import { named } from "../../lib/reference.js";
import { readTensors } from "../../lib/safetensors.js";

const TOKENS_A_REQUEST = 2048;
const CHARACTERS_A_TOKEN = 4; // about; it only cuts requests
export const TOP_K = 5;

/**
 * @typedef {Object} Answer  of one group
 * @property {Int32Array[] | null} ids  of a group that was sent as text
 * @property {number[] | null} promptIds  likewise
 * @property {Float32Array} logprobs  (n) over all its completions, as every column
 * @property {Float32Array | undefined} entropy
 * @property {Int32Array | undefined} rank  0: no token is likelier
 * @property {Float32Array | undefined} logsumexp
 * @property {Int32Array | undefined} topIds  (n * TOP_K)
 * @property {Float32Array | undefined} topLogprobs  (n * TOP_K)
 * @property {Uint8Array} status  (completions) 1: a figure is not finite
 */

/**
 * @param {import("./records.js").Samples} samples
 * @param {number[]} groups  which
 * @param {{model?: string, temperature?: number | null, normalizer?: string | null, detail?: boolean, pin?: boolean, signal?: AbortSignal,
 *          tell?: (done: number, total: number) => void}} how
 *   model: the reference, in place of the chosen one. temperature, normalizer: in place of each group's own. detail: with rank, log-sum-exp and the best tokens. pin: 409 unless
 *   the reference is the one that the file names
 * @returns {Promise<{answers: Map<number, Answer>, reference: Object}>}
 */
export async function score(samples, groups, { model, temperature = null, normalizer = null, detail = false, pin = true, signal, tell } = {}) {
  const answers = new Map();
  let [reference, done] = [null, 0];
  const total = groups.reduce((sum, k) => sum + weight(samples, k), 0);
  for (const part of parts(samples, groups, normalizer)) {
    tell?.(done, total);
    const body = {
      ...(model === undefined ? named() : { model }),
      groups: part.map((k) => asked(samples, k)),
      temperature: part.map((k) => temperature ?? samples.groups[k].temperature),
      normalizer: normalizer ?? samples.groups[part[0]].normalizer,
      return: detail ? ["entropy", "logsumexp", "rank"] : ["entropy"],
      top_k: detail ? TOP_K : 0,
    };
    if (pin && samples.groups[part[0]].fingerprint) body.fingerprint = samples.groups[part[0]].fingerprint;
    const headers = { "Content-Type": "application/json", Accept: "application/x-safetensors" };
    const response = await ask("v1/logprobs", { method: "POST", body: JSON.stringify(body), headers, signal });
    const { metadata, tensors } = readTensors(await response.arrayBuffer());
    reference = JSON.parse(metadata.reference);
    cut(part, tensors).forEach((answer, k) => answers.set(part[k], answer));
    done += part.reduce((sum, k) => sum + weight(samples, k), 0);
  }
  tell?.(total, total);
  return { answers, reference };
}

/** Tokens of a group's completions, or about so many where it is text. */
export function weight(samples, k) {
  const { first, size } = samples.groups[k];
  const tokens = samples.starts[first + size] - samples.starts[first];
  if (tokens) return tokens;
  return samples.texts.slice(first, first + size).reduce((sum, text) => sum + Math.ceil((text ?? "").length / CHARACTERS_A_TOKEN), 0);
}

/** Whether the server can be asked for this group. */
export function canScore(samples, k) {
  const { first, size, promptIds, prompt, messages } = samples.groups[k];
  if (byIds(samples, k)) return promptIds.length > 0;
  return (prompt !== null || messages !== null) && samples.texts.slice(first, first + size).every((text) => text !== null);
}

function byIds(samples, k) {
  const { first, size, promptIds } = samples.groups[k];
  const [from, to] = [samples.starts[first], samples.starts[first + size]];
  return promptIds !== null && (to > from ? samples.ids[from] >= 0 : samples.texts[first] === null);
}

function asked(samples, k) {
  const { first, size, promptIds, prompt, messages } = samples.groups[k];
  const completions = Array.from({ length: size }, (_, g) => first + g);
  if (byIds(samples, k)) {
    return { prompt: promptIds, completions: completions.map((s) => [...samples.ids.subarray(samples.starts[s], samples.starts[s + 1])]) };
  }
  const texts = completions.map((s) => samples.texts[s]);
  return messages ? { messages, completions: texts } : { prompt, completions: texts };
}

/** Groups in requests: one kind, one normalizer and one fingerprint each. */
function* parts(samples, groups, normalizer) {
  let [part, tokens, kind] = [[], 0, ""];
  for (const k of groups) {
    const its = `${byIds(samples, k)} ${normalizer ?? samples.groups[k].normalizer} ${samples.groups[k].fingerprint}`;
    if (part.length && (its !== kind || tokens + weight(samples, k) > TOKENS_A_REQUEST)) {
      yield part;
      [part, tokens] = [[], 0];
    }
    part.push(k);
    [tokens, kind] = [tokens + weight(samples, k), its];
  }
  if (part.length) yield part;
}

/** The answer of each group. */
function cut(part, tensors) {
  const sizes = tensors.group_sizes.data;
  const lengths = tensors.completion_lengths.data;
  const column = (name, from, to, width = 1) => tensors[name]?.data.slice(from * width, to * width);
  let [s, at, promptAt] = [0, 0, 0];
  return part.map((_, k) => {
    const of = lengths.subarray(s, s + sizes[k]);
    const from = at;
    const ids = tensors.completion_ids ? [] : null;
    for (const length of of) {
      ids?.push(column("completion_ids", at, at + length));
      at += length;
    }
    const promptLength = tensors.prompt_lengths?.data[k] ?? 0;
    const promptIds = tensors.prompt_ids ? [...column("prompt_ids", promptAt, promptAt + promptLength)] : null;
    promptAt += promptLength;
    const status = column("status", s, s + sizes[k]);
    s += sizes[k];
    return {
      ids,
      promptIds,
      status,
      logprobs: column("logprobs", from, at),
      entropy: column("entropy", from, at),
      rank: column("rank", from, at),
      logsumexp: column("logsumexp", from, at),
      topIds: column("top_ids", from, at, tensors.top_ids?.shape[1]),
      topLogprobs: column("top_logprobs", from, at, tensors.top_logprobs?.shape[1]),
    };
  });
}
