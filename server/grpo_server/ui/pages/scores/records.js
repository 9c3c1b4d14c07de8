/**
 * Lines of JSON to columns: every completion of a file, their tokens side by side. Runs in a worker for files.
 *
 * Read are our own `samples.jsonl`, rollouts and scores of `grpo-client score`, and lines of other trainers whose fields are
 * known by one of the names below or mapped by the user. A line is a group; where it has one completion, it need not be a list
 * of one.
 *
 * @typedef {Object} Samples
 * @property {string} name
 * @property {Group[]} groups
 * @property {Int32Array} starts  (S + 1) completion s has the tokens starts[s] to starts[s + 1]
 * @property {Int32Array} group  (S) the group of each
 * @property {Int32Array} ids  (N) -1 where not known
 * @property {Float64Array} r  (N) log-probs of the reference, nats; NaN where not known, as in all that follow
 * @property {Float64Array} t  (N) of the policy, or of whatever B is
 * @property {Float64Array} entropy  (N) of the reference, nats
 * @property {Float64Array} reward  (S)
 * @property {(string | null)[]} texts  (S)
 * @property {number} cutLines  last lines that were cut off
 * @property {boolean} whole  whether the lines are what `grpo-client check` reads
 *
 * @typedef {{step: number, prompt: string | null, messages: Object[] | null, promptIds: number[] | null, temperature: number,
 *            normalizer: string, fingerprint: string | null, first: number, size: number}} Group
 */

/** What a field may be called; the first that a line has is taken. */
export const NAMES = {
  prompt_ids: ["prompt_ids", "prompt_token_ids", "prompt"],
  prompt: ["prompt", "prompt_text", "question", "input"],
  completion_ids: ["completion_ids", "completion_token_ids", "response_ids", "output_ids", "completions", "completion"],
  completions: ["completions", "completion", "response", "responses", "output", "text"],
  policy_logprobs: ["policy_logprobs", "completion_logprobs", "inference_logprobs", "old_logprobs", "sampler_logprobs"],
  ref_logprobs: ["ref_logprobs", "reference_logprobs", "ref_log_probs", "logprobs"],
  entropy: ["ref_entropy"],
  rewards: ["rewards", "reward", "score"],
  step: ["step", "global_step"],
};

/** A line that cannot be read; `fields` are those of a line whose completions nobody could find. */
export class LineError extends Error {
  constructor(message, fields = null) {
    super(message);
    this.fields = fields;
  }
}

/**
 * @param {string} text  whole
 * @param {string} name  of the file
 * @param {Object<string, string>} mapping  field of NAMES to the file's name for it
 * @param {(share: number) => void} tell
 * @returns {Samples}
 */
export function readLines(text, name, mapping = {}, tell = () => {}) {
  const made = [];
  let [at, number, cutLines] = [text.charCodeAt(0) === 0xfeff ? 1 : 0, 0, 0];
  while (at < text.length) {
    const found = text.indexOf("\n", at);
    const end = found < 0 ? text.length : found;
    const line = text.slice(at, end).trim();
    [at, number] = [end + 1, number + 1];
    if (!line) continue;
    let record;
    try {
      record = JSON.parse(line);
    } catch {
      if (text.slice(at).trim() || !made.length) throw new LineError(`${name}, line ${number}: not valid JSON`);
      cutLines = 1;
      break;
    }
    made.push(readRecord(record, `${name}, line ${number}`, mapping));
    if (number % 200 === 0) tell(at / text.length);
  }
  if (!made.length) throw new LineError(`${name} holds no lines`);
  return columns(made, name, cutLines);
}

/** The same of records that are objects already. */
export function readRecords(records, name) {
  return columns(records.map((record, k) => readRecord(record, `${name}, group ${k + 1}`, {})), name, 0);
}

function readRecord(record, where, mapping) {
  if (typeof record !== "object" || record === null || Array.isArray(record)) throw new LineError(`${where}: must be a JSON object`);
  const field = (name, fits) => {
    const names = mapping[name] ? [mapping[name]] : NAMES[name];
    return names.map((known) => record[known]).find((value) => value !== undefined && value !== null && fits(value));
  };
  const ids = perCompletion(field("completion_ids", holdsNumbers));
  const texts = listOf(field("completions", (value) => typeof value === "string" || (Array.isArray(value) && value.every((x) => typeof x === "string"))));
  const t = perCompletion(field("policy_logprobs", holdsNumbers));
  const r = perCompletion(field("ref_logprobs", holdsNumbers));
  const shape = ids ?? r ?? t;
  if (!shape && !texts) throw new LineError(`${where}: no completions were found`, Object.keys(record));
  const lengths = shape ? shape.map((row) => row.length) : texts.map(() => 0);
  const promptIds = field("prompt_ids", (value) => Array.isArray(value) && value.every(Number.isInteger));
  return {
    group: {
      step: number(field("step", Number.isFinite), -1),
      prompt: field("prompt", (value) => typeof value === "string") ?? null,
      messages: Array.isArray(record.messages) ? record.messages : null,
      promptIds: promptIds ?? null,
      temperature: number(record.temperature, 1),
      normalizer: record.normalizer === "stablemax" ? "stablemax" : "softmax",
      fingerprint: typeof record.fingerprint === "string" ? record.fingerprint : null,
      size: lengths.length,
    },
    lengths,
    ids,
    texts: texts?.length === lengths.length ? texts : lengths.map(() => null),
    t: fitting(t, lengths, `${where}: policy log-probs`),
    r: fitting(r, lengths, `${where}: reference log-probs`),
    entropy: fitting(perCompletion(field("entropy", holdsNumbers) ?? entropyOfScores(record)), lengths, `${where}: entropy`),
    rewards: listOf(field("rewards", (value) => typeof value === "number" || Array.isArray(value))),
    whole: Boolean(record.completion_ids && record.prompt_ids),
  };
}

/** In a scores file `entropy` is the reference's; beside log-probs of a policy it is the policy's. */
function entropyOfScores({ line, logprobs, entropy }) {
  return line !== undefined && logprobs !== undefined && holdsNumbers(entropy) ? entropy : undefined;
}

function holdsNumbers(value) {
  if (!Array.isArray(value)) return false;
  const first = value.find((row) => row !== null);
  return Array.isArray(first) ? value.every((row) => row === null || Array.isArray(row)) : first === undefined || typeof first === "number";
}

/** A list of numbers for each completion. */
function perCompletion(value) {
  if (value === undefined) return null;
  const flat = value.length > 0 && value.some((row) => typeof row === "number");
  return flat ? [value] : value.map((row) => row ?? []);
}

const listOf = (value) => (value === undefined ? null : Array.isArray(value) ? value : [value]);
const number = (value, otherwise) => (typeof value === "number" && Number.isFinite(value) ? value : otherwise);

function fitting(rows, lengths, what) {
  if (!rows) return null;
  if (rows.length !== lengths.length) throw new LineError(`${what} has ${rows.length} lists for ${lengths.length} completions`);
  rows.forEach((row, g) => {
    if (row.length && row.length !== lengths[g]) throw new LineError(`${what}[${g}] has ${row.length} entries where the completion has ${lengths[g]} tokens`);
  });
  return rows;
}

function columns(made, name, cutLines) {
  const lengths = made.flatMap((one) => one.lengths);
  const starts = new Int32Array(lengths.length + 1);
  lengths.forEach((length, s) => (starts[s + 1] = starts[s] + length));
  const total = starts[lengths.length];
  const samples = {
    name,
    cutLines,
    whole: made.every((one) => one.whole),
    groups: [],
    starts,
    group: new Int32Array(lengths.length),
    ids: new Int32Array(total).fill(-1),
    r: new Float64Array(total).fill(NaN),
    t: new Float64Array(total).fill(NaN),
    entropy: new Float64Array(total).fill(NaN),
    reward: new Float64Array(lengths.length).fill(NaN),
    texts: made.flatMap((one) => one.texts),
  };
  let s = 0;
  made.forEach((one, k) => {
    samples.groups.push({ ...one.group, first: s });
    for (let g = 0; g < one.lengths.length; g++, s++) {
      samples.group[s] = k;
      if (typeof one.rewards?.[g] === "number") samples.reward[s] = one.rewards[g];
      if (one.ids) samples.ids.set(one.ids[g], starts[s]);
      for (const column of ["t", "r", "entropy"]) {
        one[column]?.[g].forEach((value, i) => (samples[column][starts[s] + i] = value ?? NaN));
      }
    }
  });
  return samples;
}
