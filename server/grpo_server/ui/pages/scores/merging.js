/** Answers of the server put into samples, which are never changed: a page that holds the old ones is not surprised. */

/**
 * @param {import("./records.js").Samples} samples
 * @param {Map<number, import("./scoring.js").Answer>} answers
 * @param {"r" | "t"} column  which the log-probs become
 * @param {{keep?: boolean}} how  keep: what the file holds stays, and only what it lacks is filled
 */
export function merged(samples, answers, column, { keep = false } = {}) {
  const spelled = withIds(samples, answers);
  const values = spelled[column].slice();
  const entropy = spelled.entropy.slice();
  for (const [k, answer] of answers) {
    const from = spelled.starts[spelled.groups[k].first];
    answer.logprobs.forEach((value, i) => {
      if (!keep || Number.isNaN(values[from + i])) values[from + i] = value;
      if (column === "r" && answer.entropy && Number.isNaN(entropy[from + i])) entropy[from + i] = answer.entropy[i];
    });
  }
  return { ...spelled, [column]: values, entropy };
}

/** Groups that were sent as text have the ids that were scored. */
function withIds(samples, answers) {
  const lengths = Array.from(samples.group, (_, s) => samples.starts[s + 1] - samples.starts[s]);
  let grown = false;
  for (const [k, { ids }] of answers) {
    ids?.forEach((row, g) => {
      const s = samples.groups[k].first + g;
      grown ||= lengths[s] !== row.length || (row.length > 0 && samples.ids[samples.starts[s]] < 0);
      lengths[s] = row.length;
    });
  }
  if (!grown) return samples;
  const starts = new Int32Array(lengths.length + 1);
  lengths.forEach((length, s) => (starts[s + 1] = starts[s] + length));
  const total = starts[lengths.length];
  const moved = (column, fill) => {
    const values = new samples[column].constructor(total).fill(fill);
    lengths.forEach((length, s) => {
      const old = samples[column].subarray(samples.starts[s], samples.starts[s + 1]);
      if (old.length === length) values.set(old, starts[s]);
    });
    return values;
  };
  const ids = moved("ids", -1);
  const groups = samples.groups.slice();
  for (const [k, answer] of answers) {
    if (!answer.ids) continue;
    answer.ids.forEach((row, g) => ids.set(row, starts[groups[k].first + g]));
    groups[k] = { ...groups[k], promptIds: answer.promptIds };
  }
  return { ...samples, groups, starts, ids, r: moved("r", NaN), t: moved("t", NaN), entropy: moved("entropy", NaN) };
}

/**
 * Another scores file as the other side.
 * @returns {string | Object} samples, or what does not fit in a sentence
 */
export function withOther(samples, other) {
  if (other.group.length !== samples.group.length) {
    return `${other.name} scores ${other.group.length} completions, and ${samples.name} has ${samples.group.length}`;
  }
  for (let s = 0; s < samples.group.length; s++) {
    const [mine, its] = [samples, other].map(({ starts }) => starts[s + 1] - starts[s]);
    if (mine !== its) return `completion ${s + 1} has ${its} tokens in ${other.name} and ${mine} in ${samples.name}`;
  }
  return { ...samples, t: other.r.slice() };
}

/** One record a group, as `grpo-client check` reads them. */
export function linesOf(samples) {
  return samples.groups.map((group, k) => `${JSON.stringify(recordOf(samples, k))}\n`).join("");
}

export function recordOf(samples, k) {
  const { first, size, step, prompt, promptIds, temperature, normalizer, fingerprint } = samples.groups[k];
  const each = (column) => {
    const rows = Array.from({ length: size }, (_, g) => [...samples[column].subarray(samples.starts[first + g], samples.starts[first + g + 1])]);
    return rows.some((row) => row.some((value) => !Number.isNaN(value))) ? rows.map((row) => row.map(finite)) : undefined;
  };
  const rewards = [...samples.reward.subarray(first, first + size)];
  const texts = samples.texts.slice(first, first + size);
  const known = samples.ids[samples.starts[first]] !== -1;
  return {
    ...(step >= 0 ? { step } : {}),
    temperature,
    normalizer,
    ...(fingerprint ? { fingerprint } : {}),
    ...(prompt === null ? {} : { prompt }),
    ...(promptIds === null ? {} : { prompt_ids: promptIds }),
    ...(known ? { completion_ids: each("ids") ?? Array(size).fill([]) } : {}),
    ...(texts.every((text) => text !== null) ? { completions: texts } : {}),
    policy_logprobs: each("t"),
    ref_logprobs: each("r"),
    ref_entropy: each("entropy"),
    ...(rewards.some((reward) => !Number.isNaN(reward)) ? { rewards: rewards.map(finite) } : {}),
  };
}

const finite = (value) => (Number.isFinite(value) ? value : null);
