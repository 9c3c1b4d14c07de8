/** What is computed from log-probs here: d, k3, and sums of them. Everything else comes from the server. */

/** d of a token: reference minus policy, nats; with sides swapped the other way round. */
export const gap = (samples, i, swapped = false) => (swapped ? samples.t[i] - samples.r[i] : samples.r[i] - samples.t[i]);

/** exp(d) - d - 1, as precise for small d as for large. */
export function k3(d) {
  if (Math.abs(d) < 1e-3) return (d * d) / 2 + (d * d * d) / 6;
  return Math.expm1(d) - d;
}

/**
 * @typedef {{s: number, group: number, j: number, step: number, reward: number, tokens: number, kl: number, most: number,
 *            surprise: number}} Row
 *   kl: mean k3, nats; most: largest |d|; surprise: mean -r
 * @returns {Row[]} one a completion
 */
export function rowsOf(samples, swapped = false) {
  const rows = [];
  for (let s = 0; s < samples.group.length; s++) {
    const [from, to] = [samples.starts[s], samples.starts[s + 1]];
    let [sum, both, most, surprise, scored] = [0, 0, NaN, 0, 0];
    for (let i = from; i < to; i++) {
      if (!Number.isNaN(samples.r[i])) [surprise, scored] = [surprise - samples.r[i], scored + 1];
      const d = gap(samples, i, swapped);
      if (Number.isNaN(d)) continue;
      sum += k3(d);
      both += 1;
      if (!(Math.abs(d) <= most)) most = Math.abs(d);
    }
    const group = samples.group[s];
    rows.push({
      s, group, j: s - samples.groups[group].first, step: samples.groups[group].step, reward: samples.reward[s],
      tokens: to - from, kl: both ? sum / both : NaN, most, surprise: scored ? surprise / scored : NaN,
    });
  }
  return rows;
}

/**
 * Where the KL is: tokens merged by themselves and the one before, the largest sums of k3 first.
 * @returns {{rows: {before: number, id: number, times: number, d: number, share: number, at: [number, number]}[], total: number}}
 *   before: -1 at the start of a completion. d: the mean. at: completion and position of the first
 */
export function contexts(samples, swapped = false, most = 12) {
  const merged = new Map();
  let total = 0;
  for (let s = 0; s < samples.group.length; s++) {
    const from = samples.starts[s];
    for (let i = from; i < samples.starts[s + 1]; i++) {
      const d = gap(samples, i, swapped);
      if (Number.isNaN(d) || samples.ids[i] < 0) continue;
      const before = i > from ? samples.ids[i - 1] : -1;
      const key = (before + 1) * 2 ** 24 + samples.ids[i];
      const one = merged.get(key) ?? { before, id: samples.ids[i], times: 0, sum: 0, kl: 0, at: [s, i - from] };
      one.times += 1;
      one.sum += d;
      one.kl += k3(d);
      total += k3(d);
      merged.set(key, one);
    }
  }
  const rows = [...merged.values()].sort((a, b) => b.kl - a.kl).slice(0, most);
  return { rows: rows.map(({ sum, kl, ...one }) => ({ ...one, d: sum / one.times, share: total > 0 ? kl / total : 0 })), total };
}

/** Completions that answer the same prompt at the same step: a group, also where a file has a line for each of them. */
export function families(samples) {
  const known = new Map();
  return samples.groups.map(({ step, prompt, messages, promptIds }, k) => {
    const key = JSON.stringify([step, promptIds ?? prompt ?? messages ?? `group ${k} of unknown prompt`]);
    if (!known.has(key)) known.set(key, known.size);
    return known.get(key);
  });
}
