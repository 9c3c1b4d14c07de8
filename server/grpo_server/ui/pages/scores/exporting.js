/** What is on the page, as files: CSV, a picture, and a bundle that shows the same on a page without a server. */
import { flowing } from "../../lib/shown.js";
import { tokenColour } from "../../lib/palette.js";
import { csv, save } from "../../lib/saving.js";
import { colour } from "../../lib/theme.js";
import { gap, k3 } from "./figures.js";
import { figure } from "./group.js";
import { recordOf } from "./merging.js";

const BUNDLE_TOKENS = 500_000;

export function saveSequences({ rows, textOf, samples }) {
  const head = ["step", "completion", "reward", "tokens", "mean_k3", "max_abs_d", "mean_surprise", "temperature", "text"];
  save("sequences.csv", csv(head, rows.map((row) => [row.step, row.j, known(row.reward), row.tokens, known(row.kl), known(row.most), known(row.surprise), samples.groups[row.group].temperature, textOf(row.s)])));
}

export function saveTokens({ rows, samples, texts, details, swapped }) {
  const head = ["step", "completion", "position", "id", "text", "reference", "policy", "d", "k3", "entropy", "rank"];
  const lines = [];
  for (const { s, group, step, j } of rows) {
    const pieces = texts.get(group)?.completions[j];
    const from = samples.starts[s];
    for (let i = 0; i < samples.starts[s + 1] - from; i++) {
      const d = gap(samples, from + i, swapped);
      lines.push([step, j, i, samples.ids[from + i], pieces?.[i] ?? null, known(samples.r[from + i]), known(samples.t[from + i]), known(d), known(k3(d)), known(samples.entropy[from + i]), details.get(group)?.rank?.[from + i - samples.starts[samples.groups[group].first]] ?? null]);
    }
  }
  save("tokens.csv", csv(head, lines));
}

const known = (value) => (Number.isNaN(value) ? null : value);

/** Groups of these rows, with pieces and details where they are known. @returns {string} what was left out, "" when nothing */
export function saveBundle({ rows, samples, texts, details, findings, reference }) {
  const groups = [...new Set(rows.map(({ group }) => group))].sort((a, b) => a - b);
  const taken = [];
  let tokens = 0;
  for (const k of groups) {
    const { first, size } = samples.groups[k];
    tokens += samples.starts[first + size] - samples.starts[first];
    if (taken.length && tokens > BUNDLE_TOKENS) break;
    taken.push(k);
  }
  const all = taken.length === samples.groups.length;
  const bundle = {
    kind: "grpo-refserver bundle",
    reference,
    records: taken.map((k) => recordOf(samples, k)),
    groups: taken.map((k) => ({ texts: texts.get(k) ?? null, details: details.has(k) ? listed(details.get(k)) : null })),
    findings: all ? findings : null, // they point at completions by number
  };
  save("bundle.json", new Blob([JSON.stringify(bundle)], { type: "application/json" }));
  return taken.length < groups.length ? `${groups.length - taken.length} groups were left out` : "";
}

function listed(answer) {
  const list = (values) => values && Array.from(values, (value) => (Number.isFinite(value) ? value : null));
  return Object.fromEntries(["logprobs", "rank", "logsumexp", "topIds", "topLogprobs", "status"].map((name) => [name, list(answer[name])]));
}

/** The group as it is coloured, on a canvas of its own. */
export async function savePicture({ samples, details, texts, members, by, swapped }) {
  const [margin, line, wide] = [16, 24, 1200];
  const canvas = document.createElement("canvas");
  const g = canvas.getContext("2d");
  const font = "15px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
  const laid = [];
  g.font = font;
  let y = margin;
  for (const s of members) {
    const k = samples.group[s];
    const pieces = texts.get(k)?.completions[s - samples.groups[k].first] ?? [];
    let x = margin;
    pieces.slice(0, 2000).forEach((piece, i) => {
      const text = flowing(piece || "▏").replaceAll("\n", "");
      const width = g.measureText(text).width + 2;
      if (x + width > wide - margin) [x, y] = [margin, y + line];
      laid.push({ text, x, y, width, fill: tokenColour(by, figure(samples, details, by, k, samples.starts[s] + i, swapped)) });
      x += width;
    });
    y += line + 6;
  }
  [canvas.width, canvas.height] = [wide * 2, Math.min(16_000, (y + margin) * 2)];
  g.scale(2, 2);
  g.font = font;
  g.textBaseline = "middle";
  g.fillStyle = colour("--bg");
  g.fillRect(0, 0, wide, y + margin);
  for (const { text, x, y: top, width, fill } of laid) {
    if (fill) {
      g.fillStyle = fill;
      g.fillRect(x, top, width - 1, line - 4);
    }
    g.fillStyle = colour("--ink");
    g.fillText(text, x + 1, top + line / 2 - 2);
  }
  save("group.png", await new Promise((done) => canvas.toBlob(done, "image/png")));
}
