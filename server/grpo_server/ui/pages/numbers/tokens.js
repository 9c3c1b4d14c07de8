/** The tokens: a slider and a field for each logit, what is masked, which is the true one, and its probability as four bars. */
import { exact } from "../../lib/format.js";
import { html } from "../../lib/html.js";
import { shown } from "../../lib/shown.js";
import { MOST, NORMALIZERS } from "./row.js";

const EDGE = 1000; // of the sliders
const COLDEST = 0.05;
const HOTTEST = 20;
const TICKS = 1000;

export const nameOf = (row, i) => (row.names ? shown(row.names[i]) || "∅" : `token ${i + 1}`);

// A slider's place and its value: logarithmic to either side of 0, so that 0.1 and 1000 are both within reach.
const toPlace = (x) => Math.round((Math.sign(x) * TICKS * Math.log1p(Math.min(EDGE, Math.abs(x)))) / Math.log1p(EDGE));
const toLogit = (place) => tidy(Math.sign(place) * Math.expm1((Math.abs(place) / TICKS) * Math.log1p(EDGE)));
const toPlaceT = (T) => Math.round((TICKS * Math.log(T / COLDEST)) / Math.log(HOTTEST / COLDEST));
const toT = (place) => tidy(COLDEST * (HOTTEST / COLDEST) ** (place / TICKS));
const tidy = (x) => Number(x.toPrecision(3));

export function Temperature({ row, setRow }) {
  const set = (temperature) => temperature > 0 && temperature < Infinity && setRow({ temperature });
  return html`<div class="bar temperature">
    <label for="temperature">Temperature T</label>
    <input type="range" aria-label="Temperature, slider" min="0" max=${TICKS} value=${toPlaceT(row.temperature)} aria-valuetext=${row.temperature}
      onInput=${(event) => set(toT(Number(event.target.value)))} />
    <input id="temperature" type="number" min="0" step="any" value=${row.temperature} onInput=${(event) => set(event.target.valueAsNumber)} />
    <button type="button" onClick=${() => set(1)} disabled=${row.temperature === 1}>T = 1</button>
    <span class="muted small">logits are divided by T: below 1 sharper, above 1 flatter</span>
  </div>`;
}

export function Tokens({ row, setRow, answer }) {
  const fits = answer && answer.logits.length === row.logits.length;
  const add = () => setRow({ logits: [...row.logits, 0], masked: [...row.masked, false], names: null });
  return html`<div class="token-rows">
    <div class="token head" aria-hidden="true">
      <span></span><span class="wide">logit</span><span>mask</span><span>true</span>
      ${Object.values(NORMALIZERS).map((title) => html`<span key=${title}>${title}</span>`)}<span></span>
    </div>
    ${row.logits.map((_, i) => html`<${Token} key=${i} i=${i} row=${row} setRow=${setRow} distributions=${fits ? answer.distributions : null} />`)}
    <div class="bar">
      <button type="button" onClick=${add} disabled=${row.logits.length >= MOST}>Add a token</button>
      <button type="button" onClick=${() => setRow({ target: null })} disabled=${row.target === null}>No true token</button>
    </div>
  </div>`;
}

function Token({ i, row, setRow, distributions }) {
  const name = nameOf(row, i);
  const put = (list, value) => list.map((old, k) => (k === i ? value : old));
  const setLogit = (x) => Number.isFinite(x) && setRow({ logits: put(row.logits, x), masked: put(row.masked, false) });
  const remove = () => {
    const less = (list) => list && list.filter((_, k) => k !== i);
    const target = row.target === i ? null : row.target > i ? row.target - 1 : row.target;
    setRow({ logits: less(row.logits), masked: less(row.masked), names: less(row.names), target });
  };
  return html`<div class=${`token${row.masked[i] ? " masked" : ""}`} role="group" aria-label=${name}>
    <span class="name">${name}</span>
    <span class="wide">
      <input type="range" min=${-TICKS} max=${TICKS} aria-label=${`Logit of ${name}, slider`} value=${toPlace(row.logits[i])}
        aria-valuetext=${row.masked[i] ? "minus infinity" : row.logits[i]} onInput=${(event) => setLogit(toLogit(Number(event.target.value)))} />
      <input type="number" min=${-EDGE} max=${EDGE} step="any" aria-label=${`Logit of ${name}`} value=${row.logits[i]}
        onInput=${(event) => setLogit(event.target.valueAsNumber)} />
    </span>
    <label class="mark"><input type="checkbox" aria-label=${`Mask ${name}`} checked=${row.masked[i]}
      onChange=${(event) => setRow({ masked: put(row.masked, event.target.checked) })} /><span class="narrow" aria-hidden="true">mask</span></label>
    <label class="mark"><input type="radio" name="target" aria-label=${`${name} is the true one`} checked=${row.target === i}
      onChange=${() => setRow({ target: i })} /><span class="narrow" aria-hidden="true">true</span></label>
    ${Object.entries(NORMALIZERS).map(([by, title], k) => html`<${Bar} key=${by} title=${title} ink=${k} p=${distributions?.[by].p[i]} />`)}
    <button type="button" class="plain remove" aria-label=${`Remove ${name}`} title="Remove" disabled=${row.logits.length === 1} onClick=${remove}>×</button>
  </div>`;
}

function Bar({ title, ink, p }) {
  const share = typeof p === "number" ? p : 0;
  return html`<span class="p-bar">
    <span class="narrow by">${title}</span>
    <span class="track"><i class=${`ink-${ink}`} style=${{ width: `${100 * share}%` }}></i></span>
    <span class=${typeof p === "string" ? "value bad" : "value"}>${p === undefined ? "" : typeof p === "string" ? p : exact(p)}</span>
  </span>`;
}
