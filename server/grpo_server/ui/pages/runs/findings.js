/** What the rules say of a run; asked for when the page opens it, and again on demand. */
import { askJson } from "../../lib/api.js";
import { brief, count } from "../../lib/format.js";
import { html, useEffect, useState } from "../../lib/html.js";
import { change } from "../../lib/route.js";

const WORDS = { check: "check", look: "look", passed: "passed", needs_data: "no data" };

export function Findings({ run, alone }) {
  const [{ report, trouble, round }, setState] = useState({ report: null, trouble: "", round: 0 });
  useEffect(() => {
    const gone = new AbortController();
    askJson(`ui/api/runs/${encodeURIComponent(run)}/findings`, undefined, { signal: gone.signal }).then(
      (found) => setState((before) => ({ ...before, report: found, trouble: "" })),
      (error) => gone.signal.aborted || setState((before) => ({ ...before, trouble: error.message })),
    );
    return () => gone.abort();
  }, [run, round]);
  const of = (...verdicts) => report?.findings.filter(({ verdict }) => verdicts.includes(verdict)) ?? [];
  const fired = of("check", "look");
  return html`<section class="panel run-findings" aria-label=${`Findings of ${run}`}>
    <div class="bar">
      <h2>${alone ? "Findings" : `${run}: findings`}</h2>
      <span class="muted small">${report ? said(report) : trouble ? "" : "asking …"}</span>
      <button type="button" onClick=${() => setState((before) => ({ ...before, round: before.round + 1 }))}>Ask again</button>
    </div>
    ${trouble ? html`<p class="bad" role="alert">${trouble}</p>` : null}
    ${report && !fired.length ? html`<p>No rule fired.</p>` : null}
    <ul class="plain-list">${fired.map((finding) => html`<${Fired} key=${finding.name} finding=${finding} />`)}</ul>
    <${Folded} title="passed" findings=${of("passed")} />
    <${Folded} title="need data" findings=${of("needs_data")} />
  </section>`;
}

function said({ groups, tokens, left_out: bytes }) {
  return `${count(groups)} groups, ${count(tokens)} tokens${bytes ? `; ${count(bytes)} bytes between beginning and end left out` : ""}`;
}

function Fired({ finding }) {
  const { name, verdict, says, why, remedy, n, unit, figures, tokens, steps } = finding;
  const where = [...new Set([...steps, ...tokens.map(([step]) => step)])].filter((step) => step >= 0).slice(0, 8);
  return html`<li>
    <span class=${`sev ${verdict}`}>${WORDS[verdict]}</span>
    <div>
      <p>${says}</p>
      <details><summary>why and what to do<span class="unseen">: ${name}</span></summary>
        <dl class="because"><dt>Why</dt><dd>${why}</dd><dt>What to do</dt><dd>${remedy}</dd>
          <dt>Figures</dt><dd class="mono">${Object.entries(figures).map(([key, value]) => `${key} ${brief(value)}`).join(" · ")} · ${count(n)} ${unit}</dd></dl>
      </details>
      ${where.length ? html`<p class="small">at step ${where.map((step) => html`<button key=${step} type="button" onClick=${() => change({ step, group: groupOf(tokens, step) }, { push: true })}>${step}</button> `)}</p>` : null}
    </div>
  </li>`;
}

/** The first group of that step that the finding points at; null for the first one. */
function groupOf(tokens, step) {
  return tokens.find(([of]) => of === step)?.[1] || null;
}

function Folded({ title, findings }) {
  if (!findings.length) return null;
  return html`<details class="folded"><summary>${findings.length} ${title}</summary>
    <ul class="plain-list">${findings.map(({ name, verdict, says, n, unit }) => html`<li key=${name}>
      <span class=${`sev ${verdict}`}>${WORDS[verdict]}</span>
      <p>${verdict === "passed" ? says : `${name} ${says}`}${n ? html` <span class="muted">(${count(n)} ${unit})</span>` : null}</p>
    </li>`)}</ul>
  </details>`;
}
