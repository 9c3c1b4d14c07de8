/**
 * What the page Scores holds, and what can be done with it. It outlives the page: coming back from another one, all is there.
 * One thing is under way at a time, in sight, and can be cancelled.
 */
import { ApiError, ask, askJson } from "../../lib/api.js";
import { choose, named, reference, which } from "../../lib/reference.js";
import { change } from "../../lib/route.js";
import { createStore } from "../../lib/store.js";
import { families } from "./figures.js";
import { linesOf, merged, withOther } from "./merging.js";
import { spell } from "./pieces.js";
import { readFile } from "./reading.js";
import { LineError, readRecords } from "./records.js";
import { canScore, score, weight } from "./scoring.js";

/** Of a file that lacks reference log-probs this many tokens are scored without being asked. */
const UNASKED = 4096;
/** The same of the rank and the best tokens of a group that is looked at. */
const DETAIL = 16_384;

/** {samples, lines, family: number[], source, asRead} or null. lines: as the rules read them; null: made when wanted. asRead: the
 * first two before anything was scored here. */
export const held = createStore(null);
/** Of groups: rank, log-sum-exp, best tokens. */
export const details = createStore(new Map());
/** Of groups: {prompt: string[] | null, completions: string[][]}. */
export const texts = createStore(new Map());
/** {findings, rescored} or null. */
export const found = createStore(null);
/** {what, started, done, total, cancel} while something is under way. */
export const work = createStore(null);
/** What went wrong: {message, param, code, fields, retry}. */
export const trouble = createStore(null);
/** What B is: {kind: "none" | "file" | "again" | "scores", says}. */
export const other = createStore({ kind: "none", says: "" });

let swaps = 0; // of what is held: an answer to an earlier one is dropped

/** Run one thing; a second one cancels the first. */
async function under(what, doing) {
  work.get()?.cancel();
  const controller = new AbortController();
  const mine = { what, started: Date.now(), done: 0, total: 0, cancel: () => controller.abort() };
  let shown = mine;
  work.set(mine);
  trouble.set(null);
  const tell = (done, total) => {
    if (work.get() !== shown) return;
    shown = { ...shown, done, total };
    work.set(shown);
  };
  try {
    return await doing(controller.signal, tell);
  } catch (error) {
    if (controller.signal.aborted) return undefined;
    if (!(error instanceof ApiError || error instanceof LineError)) throw error;
    trouble.set({ message: error.message, param: error.param, code: error.code, status: error.status, fields: error.fields });
    return undefined;
  } finally {
    if (work.get() === shown) work.set(null);
  }
}

/** Show these; what the file lacks is scored when it is little. */
async function hold(samples, lines, source, { stay = false } = {}) {
  swaps += 1;
  details.set(new Map());
  texts.set(new Map());
  found.set(null);
  const fromFile = samples.t.some((value) => !Number.isNaN(value));
  other.set(fromFile ? { kind: "file", says: "log-probs of the file" } : { kind: "none", says: "" });
  const fresh = { sources: null, seq: null, tok: null, show: null, filter: null, step: null };
  if (!stay) change(source.kind === "run" ? { sources: null } : { ...fresh, run: null });
  put(samples, samples.whole ? lines : null, source, { samples, lines });
  const mine = swaps;
  if (unscored().length && toScore() <= UNASKED) await scoreRest();
  if (mine !== swaps) return;
  // what was typed was sampled by nobody: the rules have nothing to say of it
  if (source.kind !== "typed" && held.get()?.samples.r.some((value) => !Number.isNaN(value))) await check();
}

function put(samples, lines, source = held.get()?.source, asRead = held.get()?.asRead) {
  held.set({ samples, lines, source, asRead, family: families(samples) });
}

/** Ask this reference from now on: what was scored here is scored anew, and what a file brought stays. */
export function askReference(name) {
  if (name === which.get()) return;
  choose(name);
  const open = held.get();
  if (open) under(`asking ${name ?? "the default reference"}`, () => hold(open.asRead.samples, open.asRead.lines, open.source, { stay: true }));
}

/** Groups without reference log-probs that the server can be asked for. */
export function unscored() {
  const { samples } = held.get();
  return samples.groups.flatMap(({ first, size }, k) => {
    const values = samples.r.subarray(samples.starts[first], samples.starts[first + size]);
    return canScore(samples, k) && (!values.length || values.some((value) => Number.isNaN(value))) ? [k] : [];
  });
}

export function toScore() {
  const { samples } = held.get();
  return unscored().reduce((sum, k) => sum + weight(samples, k), 0);
}

export const openFile = (file, mapping) =>
  under(`reading ${file.name}`, async (signal, tell) => {
    try {
      const { samples, lines, bundle } = await readFile(file, file.name, { mapping, signal, tell: (share) => tell(share, 1) });
      await hold(samples, lines, { kind: "file", name: file.name });
      if (bundle) restore(bundle);
    } catch (error) {
      if (error instanceof LineError && error.fields) error.message += "; say which field is what";
      throw error;
    }
  });

/** @param {Object} record  with prompt or messages or prompt_ids, and completions, temperature, normalizer */
export const openTyped = (record, name = "what was typed") =>
  under("scoring", async () => hold(readRecords([record], name), null, { kind: "typed", name }));

/** A run of --runs. */
export const openRun = (run) =>
  under(`reading ${run}`, async (signal, tell) => {
    const blobs = [];
    for (let [after, size] = [0, 1]; after < size; ) {
      const response = await ask(`ui/api/runs/${encodeURIComponent(run)}/samples.jsonl?after=${after}`, { signal });
      size = Number(response.headers.get("x-file-size"));
      const next = Number(response.headers.get("x-next-byte"));
      blobs.push(await response.blob());
      if (next <= after) break; // a line that is still being written
      tell((after = next), size);
    }
    const { samples, lines } = await readFile(new Blob(blobs), `${run}/samples.jsonl`, { signal, tell: (share) => tell(share, 1) });
    await hold(samples, lines, { kind: "run", name: run });
  });

/** What the file lacks of the reference's log-probs. */
export async function scoreRest({ pin = true } = {}) {
  const mine = swaps;
  const { samples } = held.get();
  const groups = unscored();
  await under(`scoring ${groups.length} groups`, async (signal, tell) => {
    const detail = toScore() <= UNASKED;
    const { answers, reference: by } = await score(samples, groups, { signal, tell, detail, pin });
    if (mine !== swaps) return;
    reference.set(by);
    put(merged(samples, answers, "r", { keep: true }), null);
    if (detail) details.set(new Map([...details.get(), ...answers]));
    texts.set(new Map([...texts.get()].filter(([k]) => !answers.has(k))));
  });
}

/** Everything once more: B is this server at another temperature, by another normalizer or another of its references (model). */
export const compareAgain = (temperature, normalizer, model) => {
  const mine = swaps;
  const { samples } = held.get();
  const groups = samples.groups.flatMap((_, k) => (canScore(samples, k) ? [k] : []));
  return under("scoring the other side", async (signal, tell) => {
    const { answers } = await score(samples, groups, { model, temperature, normalizer, signal, tell, pin: false });
    if (mine !== swaps) return;
    put(merged(held.get().samples, answers, "t"), null);
    other.set({ kind: "again", says: `${model ?? "this server"} at T = ${temperature}, ${normalizer}` });
    found.set(null);
  });
};

export const compareWith = (file) =>
  under(`reading ${file.name}`, async (signal) => {
    const { samples: scores } = await readFile(file, file.name, { signal });
    const both = withOther(held.get().samples, scores);
    if (typeof both === "string") throw new LineError(both);
    put(both, null);
    other.set({ kind: "scores", says: file.name });
    found.set(null);
  });

export function compareWithNothing() {
  const { samples } = held.get();
  put({ ...samples, t: new Float64Array(samples.t.length).fill(NaN) }, null);
  other.set({ kind: "none", says: "" });
  found.set(null);
}

/** The rules; rescore: with the reference asked again, which explains a gap. */
export const check = ({ rescore = false } = {}) =>
  under(rescore ? "scoring again under other temperatures and prompts" : "checking", async (signal) => {
    const mine = swaps;
    const { samples, lines } = held.get();
    const body = lines ?? linesOf(samples);
    const headers = { "Content-Type": "application/x-ndjson" };
    const answer = await (await ask(`ui/api/findings?${new URLSearchParams({ rescore, ...named() })}`, { method: "POST", body, headers, signal })).json();
    if (mine === swaps) found.set({ ...answer, rescored: rescore });
  });

/** Texts of these groups, and their ranks and best tokens where that is not too much. Quiet: what fails leaves ids. */
export async function lookAt(groups, signal) {
  const mine = swaps;
  const { samples } = held.get();
  const unspelled = groups.filter((k) => !texts.get().has(k) && spellable(samples, k));
  if (unspelled.length) {
    const added = new Map(unspelled.map((k) => [k, null]));
    for (const [k, sequences] of unspelled.map((k) => [k, sequencesOf(samples, k)])) {
      const [prompt, ...completions] = await spell(sequences, signal);
      added.set(k, { prompt: samples.groups[k].promptIds ? prompt : null, completions });
    }
    if (mine !== swaps || held.get().samples.starts !== samples.starts) return;
    texts.set(new Map([...texts.get(), ...added]));
  }
  const bare = groups.filter((k) => !details.get().has(k) && canScore(samples, k) && samples.starts[samples.groups[k].first + samples.groups[k].size] > 0);
  if (!bare.length || bare.reduce((sum, k) => sum + weight(samples, k), 0) > DETAIL) return;
  const { answers } = await score(samples, bare, { detail: true, signal });
  if (mine !== swaps || held.get().samples.starts !== samples.starts) return;
  details.set(new Map([...details.get(), ...answers]));
}

function spellable(samples, k) {
  const { first, size } = samples.groups[k];
  const [from, to] = [samples.starts[first], samples.starts[first + size]];
  return to > from && samples.ids[from] >= 0;
}

function sequencesOf(samples, k) {
  const { first, size, promptIds } = samples.groups[k];
  const completions = Array.from({ length: size }, (_, g) => [...samples.ids.subarray(samples.starts[first + g], samples.starts[first + g + 1])]);
  return [promptIds ?? [], ...completions];
}

/** Pieces, details and findings that a bundle brought. */
function restore({ groups, findings, reference: by }) {
  const samples = held.get().samples;
  texts.set(new Map(groups.flatMap(({ texts: spelled }, k) => (spelled ? [[k, spelled]] : []))));
  details.set(new Map(groups.flatMap(({ details: kept }, k) => (kept ? [[k, typed(kept)]] : []))));
  if (findings) found.set(findings);
  if (!reference.get() && by) reference.set(by);
  put(samples, null);
}

function typed({ rank, logsumexp, topIds, topLogprobs, logprobs, status }) {
  const floats = (values) => values && Float32Array.from(values, (value) => value ?? NaN);
  return {
    rank: rank && Int32Array.from(rank), topIds: topIds && Int32Array.from(topIds), status: Uint8Array.from(status ?? []),
    logprobs: floats(logprobs), logsumexp: floats(logsumexp), topLogprobs: floats(topLogprobs),
  };
}

/** Runs that the server shows, newest first; none where it was given no directory. */
export async function listRuns() {
  try {
    return (await askJson("ui/api/runs")).runs;
  } catch (error) {
    if (error instanceof ApiError) return [];
    throw error;
  }
}
