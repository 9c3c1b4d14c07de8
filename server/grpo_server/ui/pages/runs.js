/**
 * Runs: what `grpo-train` writes, as it writes it. Small curves over one cursor for up to eight runs; a click on a step shows its
 * samples, and the rules of `grpo-client check` say what is wrong with a run.
 */
import { Chart } from "../lib/chart.js";
import { count } from "../lib/format.js";
import { html, useMemo } from "../lib/html.js";
import { useKeys } from "../lib/keyboard.js";
import { change, useFragment } from "../lib/route.js";
import { chartsOf, stepsOf } from "./runs/curves.js";
import { Findings } from "./runs/findings.js";
import { MOST, chosen, useRuns } from "./runs/following.js";
import { Samples } from "./runs/samples.js";

const SMOOTH = [1, 5, 10, 20, 50];

export function Page() {
  const state = useFragment();
  const wanted = state.runs ? state.runs.split(",").map(decodeURIComponent) : null;
  const { shown, listed, followed, trouble } = useRuns(wanted);
  return html`<h1 class="unseen">Runs</h1>
    ${trouble ? html`<p class="notice bad" role="alert">${trouble.message}${listed ? " The curves below are the last ones." : ""}</p>` : null}
    ${shown === false ? html`<${NoneGiven} />`
      : listed === null ? (trouble ? null : html`<div class="skeleton" role="status" aria-label="asking the server"></div>`)
      : listed.length ? html`<${Shown} listed=${listed} names=${chosen(listed, wanted)} all=${followed} state=${state} />`
      : html`<p class="notice">The directory holds no runs yet. <code>grpo-train</code> writes one: a directory with <code>metrics.jsonl</code>.</p>`}`;
}

function NoneGiven() {
  return html`<div class="notice">
    <p>This server was given no runs to show: start it with <code>--runs</code> and their directory.</p>
    <p>For example <code>grpo-server --model demo --runs runs</code>, where <code>make demo</code> left its run.</p>
  </div>`;
}

function Shown({ listed, names, all, state }) {
  const followed = useMemo(() => names.flatMap((name) => all.filter((run) => run.name === name)), [names.join("\n"), all]);
  const smooth = Number(state.smooth ?? 10);
  
  const x = useMemo(() => stepsOf(followed), [followed]);
  const charts = useMemo(() => chartsOf(followed, x, smooth), [followed, x, smooth]);
  const step = state.step === undefined ? null : Number(state.step);
  const picked = step === null ? null : x.indexOf(step);
  const pick = (next) => change({ step: next, group: null }, { push: true });
  const move = (by) => {
    const now = picked === null || picked < 0 ? (by > 0 ? -1 : x.length) : picked;
    const next = x[Math.max(0, Math.min(x.length - 1, now + by))];
    if (next !== undefined) change({ step: next, group: null });
  };
  useKeys([
    { key: "[", does: "the step before", run: () => move(-1) },
    { key: "]", does: "the step after", run: () => move(1) },
  ]);
  return html`
    <div class="bar runs-bar">
      <${Choice} listed=${listed} names=${names} />
      <label>smooth <select value=${smooth} onChange=${(event) => change({ smooth: event.target.value })}>
        ${SMOOTH.map((n) => html`<option key=${n} value=${n}>${n === 1 ? "not" : `median of ${n}`}</option>`)}</select></label>
      <span class="muted small" role="status">${said(followed, x)}</span>
    </div>
    ${followed.some(({ trouble }) => trouble) ? followed.filter(({ trouble }) => trouble).map(({ name, trouble }) => html`<p key=${name} class="notice bad" role="alert"><b>${name}</b>: ${trouble}</p>`) : null}
    <div class="charts">
      ${charts.map(({ key, ...chart }) => html`<${Chart} key=${key} ...${chart} x=${x} xLabel="step" cursor="runs" height=${150} picked=${picked} onPick=${(k) => pick(x[k])} />`)}
    </div>
    ${x.length ? html`<div class="bar step-bar">
      <button type="button" aria-label="The step before" onClick=${() => move(-1)}>‹</button>
      <label>step <input type="range" min=${x[0]} max=${x[x.length - 1]} value=${step ?? x[x.length - 1]} onChange=${(event) => pick(nearest(x, Number(event.target.value)))} /></label>
      <button type="button" aria-label="The step after" onClick=${() => move(1)}>›</button>
      <span class="mono">${step === null ? "click a curve, or move, to see a step's samples" : step}</span>
    </div>` : null}
    <div class="run-details">
      ${step === null ? null : followed.map(({ name }) => html`<${Samples} key=${`${name} ${step}`} run=${name} step=${step} alone=${followed.length === 1} />`)}
      ${followed.map(({ name }) => html`<${Findings} key=${name} run=${name} alone=${followed.length === 1} />`)}
    </div>`;
}

function Choice({ listed, names }) {
  const toggle = (name) => {
    const next = names.includes(name) ? names.filter((other) => other !== name) : [...names, name];
    change({ runs: next.map(encodeURIComponent).join(",") || null });
  };
  return html`<fieldset class="run-choice"><legend class="unseen">Runs, at most ${MOST}</legend>
    ${listed.slice(0, 40).map(({ name }) => {
      const k = names.indexOf(name);
      return html`<label key=${name} class="run"><input type="checkbox" checked=${k >= 0} disabled=${(k < 0 && names.length >= MOST) || (k >= 0 && names.length === 1)} onChange=${() => toggle(name)} />
        ${k >= 0 ? html`<i class=${`ink ink-${k}`}></i>` : null}${name}</label>`;
    })}
    ${listed.length > 40 ? html`<span class="muted small">and ${count(listed.length - 40)} older ones</span>` : null}
  </fieldset>`;
}

function said(followed, x) {
  const cut = followed.filter(({ cut }) => cut).length;
  return `${count(x.length)} steps${cut ? `; ${cut === 1 ? "a last line is" : `${cut} last lines are`} being written, or cut off, and left out` : ""}`;
}

function nearest(x, step) {
  return x.reduce((best, other) => (Math.abs(other - step) < Math.abs(best - step) ? other : best), x[0]);
}
