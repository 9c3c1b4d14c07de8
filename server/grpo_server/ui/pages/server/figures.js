/** What the page says of the answers: rates, shares, quantiles and a verdict. Nothing is said that the counters do not tell. */
import { count, seconds } from "../../lib/format.js";
import { STARTED } from "./metrics.js";

const LATELY_S = 30; // over which a rate of now is taken
const REFUSING_S = 10;
// A refusal of these says that the server could not take a request; the others, that a request was wrong.
const OVERLOAD = new Set(["queue_full", "loading", "swapping", "draining", "load_failed", "too_many_connections", "shelf_full", "out_of_memory"]);

export const brieflyTimed = (s) => (s < 0.1 ? "under 0.1 s" : seconds(s));

/** Growth of a counter between two answers; null across a restart, where counters begin again. */
function grown(before, after, read) {
  const growth = read(after) - read(before);
  return restarted(before, after) || growth < 0 ? null : growth;
}

const restarted = (before, after) => after.one(STARTED) !== before.one(STARTED) || after.one("computed_tokens_total") < before.one("computed_tokens_total");

/** The earliest answer of the last `span` seconds that no restart lies behind. */
function since(samples, span) {
  const latest = samples[samples.length - 1];
  let k = samples.length - 1;
  while (k > 0 && latest.at - samples[k - 1].at <= span + 0.5 && !restarted(samples[k - 1], samples[k])) k--;
  return samples[k];
}

const ratio = (part, whole) => (part === null || !whole ? null : part / whole);

/** @param {import("./metrics.js").Sample[]} samples  at least one */
export function now(samples) {
  const latest = samples[samples.length - 1];
  const lately = since(samples, LATELY_S);
  const all = since(samples, Infinity);
  const passed = latest.at - lately.at;
  const rate = (name) => ratio(grown(lately, latest, (s) => s.one(name)), passed);
  const batches = grown(all, latest, (s) => s.histogram("batch_tokens").count);
  const batchTokens = ratio(grown(all, latest, (s) => s.histogram("batch_tokens").sum), batches);
  const [hits, misses] = ["cache_hits_total", "cache_misses_total"].map((name) => grown(all, latest, (s) => s.one(name)));
  const computed = rate("computed_tokens_total");
  const codes = codesOf(all, latest);
  return {
    scored: rate("scored_tokens_total"),
    computed,
    scoredPerComputed: ratio(grown(all, latest, (s) => s.one("scored_tokens_total")), grown(all, latest, (s) => s.one("computed_tokens_total"))),
    queuedSeconds: latest.one("queue_tokens") ? ratio(latest.one("queue_tokens"), computed) : null,
    batchTokens,
    fill: latest.has("max_batch_tokens") ? ratio(batchTokens, latest.one("max_batch_tokens")) : null,
    hits: ratio(hits, hits === null ? 0 : hits + misses),
    refused: codes.reduce((sum, { lately: n }) => sum + n, 0),
    codes,
    changes: changesOf(samples),
  };
}

function refusals(sample) {
  return new Map(sample.all("refusals_total").map(({ labels, value }) => [labels.reason, value]));
}

function codesOf(before, after) {
  const was = refusals(before);
  return [...refusals(after)]
    .filter(([, ever]) => ever > 0)
    .map(([code, ever]) => ({ code, ever, lately: ever - (was.get(code) ?? 0) }))
    .sort((a, b) => b.lately - a.lately || b.ever - a.ever);
}

/** When the reference was replaced, as far as these answers saw it. */
function changesOf(samples) {
  return samples.slice(1).flatMap((sample, k) => (sample.one("reference_version") > samples[k].one("reference_version") && samples[k].one("reference_version") > 0 ? [{ at: sample.at, version: sample.one("reference_version") }] : []));
}

/** @returns {{kind: "idle" | "busy" | "refusing" | "not ready", says: string}} */
export function verdict(samples, figures) {
  const latest = samples[samples.length - 1];
  if (!latest.one("ready")) return { kind: "not ready", says: "the model is being loaded or replaced, or the server ends: /readyz says which" };
  const told = codesOf(since(samples, REFUSING_S), latest).filter(({ code, lately }) => lately && OVERLOAD.has(code));
  if (told.length) return { kind: "refusing", says: `${told.map(({ code, lately }) => `${code} ${count(lately)}`).join(", ")} in the last ${REFUSING_S} s` };
  const queued = latest.one("queue_tokens");
  if (queued > 0) return { kind: "busy", says: figures.queuedSeconds === null ? `${count(queued)} tokens queued` : `${brieflyTimed(figures.queuedSeconds)} of work queued` };
  if (latest.one("queue_requests") > 0) return { kind: "busy", says: "the last batch is under way" };
  return { kind: "idle", says: figures.computed ? `${count(figures.computed)} tokens/s over the last ${LATELY_S} s, and nothing waits` : "nothing waits" };
}

/** A column a figure, an entry an answer but the first; null where there is nothing to tell. */
export function columns(samples) {
  const pairs = samples.slice(1).map((after, k) => [samples[k], after]);
  const each = (read) => pairs.map(([before, after]) => read(before, after));
  const rate = (name) => each((before, after) => ratio(grown(before, after, (s) => s.one(name)), after.at - before.at));
  const mean = (name) => each((before, after) => ratio(grown(before, after, (s) => s.histogram(name).sum), grown(before, after, (s) => s.histogram(name).count)));
  const codes = [...new Set(samples.flatMap((sample) => [...refusals(sample).keys()]))].slice(0, 8);
  return {
    x: pairs.map(([, after]) => after.at),
    scored: rate("scored_tokens_total"),
    computed: rate("computed_tokens_total"),
    queue: each((_, after) => after.one("queue_tokens")),
    wait: mean("queue_seconds"),
    compute: mean("compute_seconds"),
    batch: mean("batch_tokens"),
    hits: each((before, after) => {
      const [hits, misses] = ["cache_hits_total", "cache_misses_total"].map((name) => grown(before, after, (s) => s.one(name)));
      return hits === null ? null : ratio(hits, hits + misses);
    }),
    refusals: codes.map((code) => ({
      label: code,
      values: each((before, after) => ratio(grown(before, after, (s) => refusals(s).get(code) ?? 0), after.at - before.at)),
    })),
  };
}

const HISTOGRAMS = { queue_seconds: ["wait for the first batch", " s"], compute_seconds: ["one batch in the engine", " s"], batch_tokens: ["tokens of a batch", ""] };

/** p50 and p95 as the buckets that hold them, over all answers; over the whole life of the server where there is but one. */
export function quantiles(samples) {
  const latest = samples[samples.length - 1];
  const first = samples.length > 1 ? since(samples, Infinity) : null;
  return Object.entries(HISTOGRAMS).map(([name, [title, unit]]) => {
    const after = latest.histogram(name);
    const before = first && first !== latest ? first.histogram(name) : { count: 0, buckets: [] };
    const was = new Map(before.buckets.map(({ upTo, count: n }) => [upTo, n]));
    const buckets = after.buckets.map(({ upTo, count: n }) => ({ upTo, count: n - (was.get(upTo) ?? 0) }));
    const n = after.count - before.count;
    return { title, n, p50: bucketOf(buckets, n, 0.5, unit), p95: bucketOf(buckets, n, 0.95, unit) };
  });
}

function bucketOf(buckets, n, share, unit) {
  if (n <= 0) return "–";
  const k = buckets.findIndex(({ count: upTo }) => upTo >= share * n);
  const low = k > 0 ? buckets[k - 1].upTo : 0;
  return buckets[k].upTo === Infinity ? `over ${low}${unit}` : `${low}–${buckets[k].upTo}${unit}`;
}
