/** One answer of /metrics, in Prometheus' text format, as numbers. */

export const PREFIX = "grpo_server_";
export const STARTED = "process_start_time_seconds";

/** Every name that this page reads; a test looks for each in a real answer. */
export const NAMES = [
  "ready",
  "scored_tokens_total",
  "computed_tokens_total",
  "queue_tokens",
  "queue_requests",
  "max_queue_tokens",
  "max_batch_tokens",
  "batch_tokens",
  "queue_seconds",
  "compute_seconds",
  "cache_hits_total",
  "cache_misses_total",
  "cache_bytes",
  "refusals_total",
  "oom_splits_total",
  "reference_version",
  "reference_info",
  "hosted_version",
  "hosted_ready",
  "swap_in_progress",
];

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\\\": "\\", '\\"': '"', "\\n": "\n" };

export class Sample {
  /** @param {number} at  seconds since the epoch */
  constructor(at, text) {
    this.at = at;
    this.series = new Map();
    for (const line of text.split("\n")) {
      const found = line.startsWith("#") ? null : LINE.exec(line);
      if (!found || !(found[1].startsWith(PREFIX) || found[1] === STARTED)) continue;
      const name = found[1].startsWith(PREFIX) ? found[1].slice(PREFIX.length) : found[1];
      if (!this.series.has(name)) this.series.set(name, []);
      this.series.get(name).push({ labels: labelsOf(found[2] ?? ""), value: valueOf(found[3]) });
    }
  }

  has(name) {
    return this.series.has(name);
  }

  /** The sum over all labels; 0 for a counter that never counted. */
  one(name) {
    return this.all(name).reduce((sum, { value }) => sum + value, 0);
  }

  /** @returns {{labels: Object<string, string>, value: number}[]} */
  all(name) {
    return this.series.get(name) ?? [];
  }

  /** @returns {{sum: number, count: number, buckets: {upTo: number, count: number}[]}} counts are of all up to that edge */
  histogram(name) {
    const buckets = new Map();
    for (const { labels, value } of this.all(`${name}_bucket`)) {
      const upTo = valueOf(labels.le);
      buckets.set(upTo, (buckets.get(upTo) ?? 0) + value);
    }
    const ordered = [...buckets].map(([upTo, count]) => ({ upTo, count })).sort((a, b) => a.upTo - b.upTo);
    return { sum: this.one(`${name}_sum`), count: this.one(`${name}_count`), buckets: ordered };
  }
}

function labelsOf(text) {
  return Object.fromEntries([...text.matchAll(LABEL)].map(([, name, value]) => [name, value.replace(/\\[\\"n]/g, (escape) => ESCAPES[escape])]));
}

function valueOf(text) {
  return text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text);
}
