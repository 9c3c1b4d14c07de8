/** A prompt with all of its completions under one another, coloured; one of them can be walked. */
import { brief, fixed } from "../../lib/format.js";
import { html, useMemo } from "../../lib/html.js";
import { SCALES, ramp, tokenClass } from "../../lib/palette.js";
import { change } from "../../lib/route.js";
import { flowing } from "../../lib/shown.js";
import { useStore } from "../../lib/store.js";
import { dark } from "../../lib/theme.js";
import { TokenLine } from "../../lib/tokenline.js";
import { gap } from "./figures.js";

/** Of a group with more tokens than this the completions that are not selected are cut. */
const WHOLE = 10_000;
const CUT = 400;

/** What a token can be coloured by here. */
export const coloursFor = (compared) => (compared ? ["d", "r", "t", "entropy", "rank"] : ["r", "entropy", "rank"]);

/** The figure of a token that a colour shows; null where it is not known, NaN where it is not finite. */
export function figure(samples, details, by, k, i, swapped) {
  const answer = details.get(k);
  const value = measured(samples, answer, by, k, i, swapped);
  if (value === null || !Number.isNaN(value)) return value;
  return answer?.status?.[completionOf(samples, i) - samples.groups[k].first] === 1 ? NaN : null;
}

/** Asked for every token at every change of colour. */
function measured(samples, answer, by, k, i, swapped) {
  if (by === "d") return gap(samples, i, swapped);
  if (by === "rank") return answer?.rank?.[i - samples.starts[samples.groups[k].first]] ?? null;
  return samples[by][i];
}

/** The completion that token i is in. */
export function completionOf(samples, i) {
  let [low, high] = [0, samples.group.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (samples.starts[middle] <= i) low = middle;
    else high = middle - 1;
  }
  return low;
}

export function Group({ samples, details, texts, members, selected, token, by, swapped, compared, side, onHover, rows }) {
  const total = members.reduce((sum, s) => sum + samples.starts[s + 1] - samples.starts[s], 0);
  const k = samples.group[selected];
  const { step } = samples.groups[k];
  return html`<section class="view" aria-labelledby="group-title">
    <div class="bar">
      <h2 id="group-title">Group${step >= 0 ? ` of step ${step}` : ""}</h2>
      <label>Colour <select value=${by} onChange=${(event) => change({ by: event.target.value })}>
        ${coloursFor(compared).map((name) => html`<option key=${name} value=${name}>${labelOf(name, side)}</option>`)}
      </select></label>
      <${Legend} by=${by} swapped=${swapped} side=${side} />
    </div>
    <${Prompt} group=${samples.groups[k]} pieces=${texts.get(k)?.prompt} />
    <div class="group">
      ${members.map((s) => html`<${Completion} key=${s} s=${s} samples=${samples} details=${details} texts=${texts} by=${by} swapped=${swapped} compared=${compared}
        selected=${s === selected} token=${s === selected ? token : null} cut=${total > WHOLE && s !== selected} onHover=${onHover} row=${rows[s]} />`)}
    </div>
  </section>`;
}

const labelOf = (name, side) => SCALES[name].label.replace("policy", side);

function Legend({ by, swapped, side }) {
  useStore(dark);
  const { ends, diverging } = SCALES[by];
  const likes = [`${side} likes it more`, "reference likes it more"];
  const sides = swapped ? likes.reverse() : likes;
  return html`<span class="ramp muted">
    ${diverging ? html`<span>${sides[0]}</span>` : null}<span class="mono">${ends[0]}</span>
    <span aria-hidden="true">${ramp(by).map((hex) => html`<i style=${{ background: hex }}></i>`)}</span>
    <span class="mono">${ends[1]}</span>${diverging ? html`<span>${sides[1]}</span>` : null}
  </span>`;
}

function Prompt({ group, pieces }) {
  const { prompt, messages, promptIds } = group;
  const text = prompt ?? pieces?.join("") ?? messages?.map(({ role, content }) => `${role}: ${typeof content === "string" ? content : JSON.stringify(content)}`).join("\n");
  const said = text ?? (promptIds ? `${promptIds.length} ids: ${promptIds.slice(0, 40).join(" ")}${promptIds.length > 40 ? " …" : ""}` : "The file does not say what the prompt was.");
  return html`<div class="prompt" tabindex="0" role="region" aria-label="Prompt">${text === undefined ? said : said.split("\n").map(flowing).join("\n")}</div>`;
}

function Completion({ s, samples, details, texts, by, swapped, compared, selected, token, cut, onHover, row }) {
  const k = samples.group[s];
  const from = samples.starts[s];
  const length = samples.starts[s + 1] - from;
  const spelled = texts.get(k)?.completions[s - samples.groups[k].first];
  const answer = details.get(k);
  const pieces = useMemo(() => {
    const known = spelled ?? Array.from({ length }, (_, i) => (samples.ids[from + i] < 0 ? ` [${i}]` : ` ${samples.ids[from + i]}`));
    return cut ? known.slice(0, CUT) : known;
  }, [samples.ids, from, spelled, length, cut]);
  const line = useMemo(() => {
    const value = (i) => figure(samples, details, by, k, from + i, swapped);
    return { pieces, classOf: (i) => tokenClass(by, value(i)) || "unasked", labelOf: (i) => spoken(by, value(i)) };
  }, [samples, pieces, by, swapped, answer]);
  const reward = Number.isNaN(row.reward) ? "" : brief(row.reward);
  const figureOf = compared ? brief(row.kl) : brief(row.surprise);
  const choose = (i) => change({ seq: s, tok: i }, { push: !selected });
  return html`<div class=${`completion${selected ? " on" : ""}`}>
    <button type="button" class="plain tag" aria-pressed=${selected} onClick=${() => choose(null)}>
      <b><span class="unseen">completion ${row.j}${reward ? ", reward " : ""}</span>${reward || `#${row.j}`}</b>
      <span><span class="unseen">, ${compared ? "k3" : "surprise"} </span>${figureOf}</span>
    </button>
    <div class="text">
      ${length ? html`<${TokenLine} line=${line} id="tok" walkable=${selected} selected=${selected ? token : null}
        label="Tokens of the selected completion; left and right move, n and p go to the next and previous outlier" onSelect=${choose} onHover=${(i) => onHover(i === null ? null : { s, i })} />`
        : html`<span class="muted small">${samples.texts[s] === null ? "no tokens" : flowing(samples.texts[s]) || "empty"}</span>`}
      ${cut && length > CUT ? html`<span class="gap"> … ${length - CUT} tokens behind; select it to see them</span>` : null}
    </div>
  </div>`;
}

function spoken(by, value) {
  const name = { d: "d", r: "reference", t: "policy", entropy: "entropy", rank: "rank" }[by];
  if (value === null) return `${name} not known`;
  if (Number.isNaN(value)) return `${name} not finite`;
  return by === "rank" ? `rank ${value}` : `${name} ${value < 0 ? "minus" : "plus"} ${fixed(Math.abs(value), 2)}`;
}
