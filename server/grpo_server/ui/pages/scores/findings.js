/** The findings: what is wrong on top, with its statistic; what passed or could not be asked is folded, and hidden nowhere. */
import { brief, count } from "../../lib/format.js";
import { html } from "../../lib/html.js";
import { change, useFragment } from "../../lib/route.js";
import { useStore } from "../../lib/store.js";
import { check, found, held } from "./model.js";
import { canScore } from "./scoring.js";

const WORDS = { check: "check", look: "look", passed: "passed", needs_data: "no data" };

export function Findings() {
  const report = useStore(found);
  const { samples } = useStore(held);
  const { show } = useFragment();
  const can = samples.groups.some((_, k) => canScore(samples, k));
  const fired = report?.findings.filter(({ verdict }) => verdict === "check" || verdict === "look") ?? [];
  const quiet = report?.findings.filter(({ verdict }) => verdict === "passed") ?? [];
  const unasked = report?.findings.filter(({ verdict }) => verdict === "needs_data") ?? [];
  return html`<section class="panel findings" aria-labelledby="findings-title">
    <div class="bar">
      <h1 id="findings-title">Findings</h1>
      <span class="muted small">${report ? summary(fired, quiet, unasked) : "not asked"}</span>
      <span class="spacer"></span>
      ${report ? null : html`<button type="button" onClick=${() => check()}>Check</button>`}
      <button type="button" disabled=${!can} onClick=${() => check({ rescore: true })} title="Scores up to 4,096 tokens again under other temperatures, prompts and normalizers">
        ${report?.rescored ? "Explain again" : "Explain by re-scoring"}</button>
    </div>
    ${fired.length ? html`<ol class="plain-list">${fired.map((finding) => html`<${Finding} key=${finding.name} finding=${finding} shown=${show === finding.name} />`)}</ol>` : null}
    <${Folded} title=${`${quiet.length} passed`} findings=${quiet} />
    <${Folded} title=${`${unasked.length} need data`} findings=${unasked} />
  </section>`;
}

function summary(fired, quiet, unasked) {
  const bad = fired.filter(({ verdict }) => verdict === "check").length;
  const said = bad ? `${bad} to check` : fired.length ? "nothing wrong, something to look at" : "nothing found";
  return `${said}; ${quiet.length} passed, ${unasked.length} need data`;
}

function Finding({ finding, shown }) {
  const { name, verdict, says, why, remedy, n, unit, figures, tokens } = finding;
  return html`<li>
    <span class=${`sev ${verdict}`}>${WORDS[verdict]}</span>
    <div>
      <p>${says}</p>
      <details>
        <summary>why and what to do<span class="unseen">: ${name}</span></summary>
        <dl class="because">
          <dt>Why</dt><dd>${why}</dd>
          <dt>What to do</dt><dd>${remedy}</dd>
          <dt>Figures</dt><dd class="mono">${Object.entries(figures).map(([key, value]) => `${key} ${brief(value)}`).join(" · ")} · ${count(n)} ${unit}</dd>
        </dl>
      </details>
    </div>
    ${tokens.length ? html`<button type="button" aria-pressed=${shown} onClick=${() => change({ show: shown ? null : name, seq: tokens[0][0], tok: tokens[0][1] }, { push: true })}>
      ${shown ? "show all" : `show ${tokens.length}`}<span class="unseen"> of ${name}</span></button>` : html`<span></span>`}
  </li>`;
}

function Folded({ title, findings }) {
  if (!findings.length) return null;
  return html`<details class="folded"><summary>${title}</summary>
    <ul class="plain-list">${findings.map(({ name, verdict, says, why, n, unit }) => html`<li key=${name}>
      <span class=${`sev ${verdict}`}>${WORDS[verdict]}</span>
      <div><p>${verdict === "passed" ? says : `${name} ${says}`}${n ? html` <span class="muted">(${count(n)} ${unit})</span>` : null}</p><p class="muted small">${why}</p></div>
    </li>`)}</ul>
  </details>`;
}
