/** The curves: which figures make a chart, and each as raw points with a running median, which a single spike does not move. */

/** Figures of one chart share its axis. share: lies in 0..1. stacked: seconds, each on top of the one before. */
const CHARTS = [
  { key: "reward", title: "Reward", figures: { "reward/mean": "mean", "reward/correct": "correct" } },
  { key: "kl", title: "KL to the reference", unit: "nats a token, log", log: true, figures: { kl: "KL" } },
  { key: "length", title: "Completion length", unit: "tokens", figures: { "completion/length": "mean" } },
  { key: "shares", title: "Ended, and flat groups", unit: "share", share: true, figures: { "completion/ended": "ended", "reward/flat_groups": "flat groups" } },
  { key: "entropy", title: "Entropy of the policy", unit: "nats", figures: { "policy/entropy": "entropy" } },
  { key: "clip", title: "Clipped, and left out", unit: "share of tokens", figures: { clip_low: "below", clip_high: "above", "policy/left_out": "left out" } },
  { key: "grad", title: "Gradient norm", unit: "log", log: true, figures: { "policy/grad_norm": "norm" } },
  {
    key: "time", title: "Seconds of a step", unit: "each on top of the one before", stacked: true,
    figures: { "time/reference_wait_s": "waiting for the reference", "time/rollout_s": "rollout", "time/forward_s": "forward", "time/backward_s": "backward" },
  },
  { key: "gap", title: "Sampler gap", unit: "nats", figures: { "policy/sampler_gap": "gap" } },
];

/** @returns {number[]} the steps of all runs, ascending */
export function stepsOf(followed) {
  return [...new Set(followed.flatMap(({ records }) => records.map(({ step }) => step)))].sort((a, b) => a - b);
}

/** Props of each chart that has something to show. One run: a colour a figure; several: a colour a run, and its first figure. */
export function chartsOf(followed, x, smooth) {
  const alone = followed.length === 1;
  return CHARTS.flatMap(({ key, title, unit, log, share, stacked, figures }) => {
    const known = Object.entries(figures).filter(([name]) => followed.some(({ records }) => records.some((record) => typeof record[name] === "number")));
    if (!known.length) return [];
    const shown = alone ? known : known.slice(0, 1);
    const lines = followed.flatMap((run, r) => shown.map(([name, label], k) => ({ label: alone ? label : run.name, ink: alone ? k : r, values: column(run, x, name) })));
    const unitOf = alone || known.length === 1 ? unit : [known[0][1], unit].filter(Boolean).join(", ");
    const series = stacked && alone ? stack(lines, smooth) : lines.flatMap((line) => smoothed(line, smooth));
    return [{ key, title, unit: unitOf, log, range: share ? [-0.03, 1.03] : undefined, series }];
  });
}

/** A figure at each step; null where the run has none, or it was not finite. */
function column({ records }, x, name) {
  const values = new Map(records.map((record) => [record.step, record[name]]));
  return x.map((step) => values.get(step) ?? null);
}

function smoothed(line, smooth) {
  if (smooth <= 1) return [line];
  return [
    { ...line, label: `${line.label}, each step`, points: true, quiet: true },
    { ...line, label: line.label, values: medians(line.values, smooth), width: 2 },
  ];
}

function stack(lines, smooth) {
  let below = null;
  return lines.map((line) => {
    const own = smooth > 1 ? medians(line.values, smooth) : line.values;
    const values = own.map((value, i) => (value === null ? null : value + (below?.[i] ?? 0)));
    below = values;
    return { ...line, values, fill: true };
  });
}

/** The median of the last n values at each place; of what is null there is nothing. */
export function medians(values, n) {
  return values.map((value, i) => {
    if (value === null) return null;
    const window = values.slice(Math.max(0, i - n + 1), i + 1).filter((other) => other !== null).sort((a, b) => a - b);
    const middle = window.length >> 1;
    return window.length % 2 ? window[middle] : (window[middle - 1] + window[middle]) / 2;
  });
}
