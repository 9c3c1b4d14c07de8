/** Two tables of an answer: a normalizer written out in three types, and what the server computes under each of the four. */
import { exact } from "../../lib/format.js";
import { html, useState } from "../../lib/html.js";
import { NORMALIZERS } from "./row.js";
import { nameOf } from "./tokens.js";

const TYPES = { float16: "fp16", bfloat16: "bf16", float32: "fp32" };
const FORMS = { naive: "naive", stable: "stable" };
const STEPS = {
  p: "p",
  logprobs: "log p",
  gradient: "p − y, the gradient",
  terms: "terms of the sum",
  logits: "logits over T",
};
const SUMS = { total: "sum of the terms", logsumexp: "log-sum-exp", loss: "loss: −log p of the true token" };
const COMPUTED = { logprobs: "log p", gradient: "p − y, the gradient", logit_gradient: "gradient by the logits given", p: "p" };
const LIMITS = ["inf", "-inf"]; // the logarithm of a probability that is 0, and the loss of such a token
const OF_A_ROW = { entropy: "entropy, nats", support: "tokens with p > 0", loss: "loss of the true token" };

export const spelled = (value) => (value === null || value === undefined ? "" : typeof value === "string" ? value : exact(value));

/** @param {{value: number | string | null, right?: string[]}} props  right: what is no fault though it is no number */
function Cell({ value, right = [] }) {
  return html`<td class=${typeof value === "string" && !right.includes(value) ? "number mono bad" : "number mono"}>${spelled(value)}</td>`;
}

export function WrittenOut({ row, setRow, answer }) {
  const [step, setStep] = useState("p");
  const columns = Object.keys(FORMS).flatMap((form) => Object.keys(TYPES).map((type) => ({ form, type, of: answer[form][type] })));
  const known = columns[0].of[step] !== null;
  const sums = Object.entries(SUMS).filter(([name]) => columns[0].of[name] !== null);
  return html`<section class="panel" aria-labelledby="written-out">
    <div class="bar">
      <h2 id="written-out">Written out</h2>
      <label>normalizer <select value=${row.normalizer} onChange=${(event) => setRow({ normalizer: event.target.value })}>
        ${Object.entries(NORMALIZERS).map(([name, title]) => html`<option key=${name} value=${name}>${title}</option>`)}
      </select></label>
      <label>show <select value=${step} onChange=${(event) => setStep(event.target.value)}>
        ${Object.entries(STEPS).map(([name, title]) => html`<option key=${name} value=${name}>${title}</option>`)}
      </select></label>
    </div>
    <p class="muted small">Every step is rounded to the type. Stable is: subtract the maximum first.</p>
    <div class="scroll" id="written-out-table" data-by=${answer.normalizer} tabindex="0" role="region" aria-label="Written out, as a table">
      <table>
        <thead>
          <tr><td></td>${Object.values(FORMS).map((title) => html`<th key=${title} scope="colgroup" colspan="3" class="form">${title}</th>`)}</tr>
          <tr><th scope="col">token</th>${columns.map(({ form, type }) => html`<th key=${form + type} scope="col" class="number">${TYPES[type]}</th>`)}</tr>
        </thead>
        <tbody>
          ${known
            ? answer.logits.map((_, i) => html`<tr key=${i}><th scope="row">${i < row.logits.length ? nameOf(row, i) : ""}</th>
                ${columns.map(({ form, type, of }) => html`<${Cell} key=${form + type} value=${of[step][i]} />`)}</tr>`)
            : html`<tr><td colspan="7" class="muted">${step === "terms" ? "This normalizer divides nothing by a sum." : "Choose the true token: loss and gradient are of it."}</td></tr>`}
          ${sums.map(([name, title]) => html`<tr key=${name} class="sum"><th scope="row">${title}</th>
            ${columns.map(({ form, type, of }) => html`<${Cell} key=${form + type} value=${of[name]} />`)}</tr>`)}
        </tbody>
      </table>
    </div>
  </section>`;
}

export function Computed({ row, answer }) {
  const [figure, setFigure] = useState("logprobs");
  const columns = Object.keys(NORMALIZERS).map((by) => ({ by, of: answer.distributions[by] }));
  const known = columns[0].of[figure] !== null;
  return html`<section class="panel" aria-labelledby="computed">
    <div class="bar">
      <h2 id="computed">As this server computes it</h2>
      <label>show <select value=${figure} onChange=${(event) => setFigure(event.target.value)}>
        ${Object.entries(COMPUTED).map(([name, title]) => html`<option key=${name} value=${name}>${title}</option>`)}
      </select></label>
    </div>
    <p class="muted small">grpo_numerics in fp32. A log-prob keeps its digits however near p is to 1, and so does the gradient.</p>
    <div class="scroll" tabindex="0" role="region" aria-label="As this server computes it, as a table">
      <table>
        <thead><tr><th scope="col">token</th>${Object.entries(NORMALIZERS).map(([by, title]) => html`<th key=${by} scope="col" class="number">${title}</th>`)}</tr></thead>
        <tbody>
          ${known
            ? answer.logits.map((_, i) => html`<tr key=${i}><th scope="row">${i < row.logits.length ? nameOf(row, i) : ""}</th>
                ${columns.map(({ by, of }) => html`<${Cell} key=${by} value=${of[figure][i]} right=${LIMITS} />`)}</tr>`)
            : html`<tr><td colspan="5" class="muted">Choose the true token: loss and gradient are of it.</td></tr>`}
          ${Object.entries(OF_A_ROW).map(([name, title]) => html`<tr key=${name} class="sum"><th scope="row">${title}</th>
            ${columns.map(({ by, of }) => html`<${Cell} key=${by} value=${of[name]} right=${LIMITS} />`)}</tr>`)}
        </tbody>
      </table>
    </div>
  </section>`;
}
