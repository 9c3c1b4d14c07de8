/** The samples of a step: each group's completions under one another, their tokens coloured by d where the run kept log-probs. */
import { askJson, ask } from "../../lib/api.js";
import { exact, fixed } from "../../lib/format.js";
import { html, useEffect, useState } from "../../lib/html.js";
import { tokenClass } from "../../lib/palette.js";
import { address, change, useFragment } from "../../lib/route.js";
import { flowing } from "../../lib/shown.js";

export function Samples({ run, step, alone }) {
  const [state, setState] = useState({ groups: null, texts: null, trouble: "" });
  const { group } = useFragment();
  useEffect(() => {
    const gone = new AbortController();
    read(run, step, gone.signal, (part) => setState((before) => ({ ...before, ...part }))).catch((error) => {
      if (!gone.signal.aborted) setState((before) => ({ ...before, trouble: error.message }));
    });
    return () => gone.abort();
  }, [run, step]);
  const { groups, texts, trouble } = state;
  const k = Math.min(Number(group ?? 0), (groups?.length ?? 1) - 1);
  return html`<section class="panel samples" aria-label=${`Samples of step ${step} of ${run}`}>
    <div class="bar">
      <h2>${alone ? "" : `${run}: `}samples of step ${step}</h2>
      ${groups && groups.length > 1 ? html`<label>group <select value=${k} onChange=${(event) => change({ group: event.target.value })}>
        ${groups.map((_, i) => html`<option key=${i} value=${i}>${i + 1} of ${groups.length}</option>`)}</select></label>` : null}
      <a href=${address("ui", { run })}>Open the run in Scores</a>
    </div>
    ${trouble ? html`<p class="bad" role="alert">${trouble}</p>` : null}
    ${!groups ? (trouble ? null : html`<p class="muted">reading …</p>`)
      : !groups.length ? html`<p class="muted">The run kept no samples of this step.</p>`
      : html`<${Group} group=${groups[k]} texts=${texts?.[k] ?? null} />`}
  </section>`;
}

async function read(run, step, signal, tell) {
  let lines;
  try {
    lines = await (await ask(`ui/api/runs/${encodeURIComponent(run)}/samples.jsonl?step=${step}`, { signal })).text();
  } catch (error) {
    if (error.status !== 404) throw error;
    tell({ groups: [] });
    return;
  }
  const groups = lines.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
  tell({ groups });
  const wanted = groups.flatMap((group) => group.completion_ids ?? []);
  if (!wanted.length) return;
  const { sequences } = await askJson("ui/api/pieces", { sequences: wanted }, { signal });
  const pieces = sequences.map(cut);
  let at = 0;
  tell({ texts: groups.map((group) => (group.completion_ids ? pieces.slice(at, (at += group.completion_ids.length)) : null)) });
}

/** Offsets are in bytes of UTF-8. */
function cut({ text, offsets }) {
  const bytes = new TextEncoder().encode(text);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return offsets.map((start, i) => decoder.decode(bytes.subarray(start, offsets[i + 1] ?? bytes.length)));
}

function Group({ group, texts }) {
  const count = (group.completion_ids ?? group.completions ?? []).length;
  return html`<p class="prompt tokens">${flowing(group.prompt ?? "")}</p>
    <table class="completions">
      <thead><tr><th scope="col" class="number">reward</th><th scope="col" class="number">tokens</th><th scope="col" class="number">sum of d</th><th scope="col">completion</th></tr></thead>
      <tbody>${Array.from({ length: count }, (_, i) => html`<${Completion} key=${i} group=${group} i=${i} pieces=${texts?.[i]} />`)}</tbody>
    </table>
    <p class="muted small">${group.ref_logprobs ? "Blue: likelier to the reference, orange: likelier to the policy; d = reference − policy, ±2 nats." : "The run kept no log-probs of this group, so that its tokens have no colour."}</p>`;
}

function Completion({ group, i, pieces }) {
  const [r, t] = [group.ref_logprobs?.[i], (group.policy_logprobs ?? group.sampler_logprobs)?.[i]];
  const d = r && t ? r.map((x, k) => (x === null || t[k] === null || t[k] === undefined ? null : x - t[k])) : null;
  const ids = group.completion_ids?.[i];
  return html`<tr>
    <td class="number mono">${group.rewards ? exact(group.rewards[i]) : "–"}</td>
    <td class="number mono">${ids ? ids.length : "–"}</td>
    <td class="number mono">${d ? fixed(d.reduce((sum, x) => sum + (x ?? 0), 0), 2) : "–"}</td>
    <td class="tokens">${pieces
      ? pieces.map((text, k) => html`<span key=${k} class=${`tok ${tokenClass("d", d?.[k])}`} title=${titleOf(ids[k], r?.[k], t?.[k], d?.[k])}>${flowing(text) || "▏"}</span>`)
      : flowing(group.completions?.[i] ?? "")}</td>
  </tr>`;
}

function titleOf(id, r, t, d) {
  return [`id ${id}`, r === undefined ? "" : `reference ${exact(r)}`, t === undefined ? "" : `policy ${exact(t)}`, typeof d === "number" ? `d ${fixed(d, 4)}` : ""].filter(Boolean).join("\n");
}
