/** The list of completions: filtered, sorted, and only what is in sight in the document. */
import { brief, count, fixed } from "../../lib/format.js";
import { html } from "../../lib/html.js";
import { change } from "../../lib/route.js";
import { Rows } from "../../lib/rows.js";
import { shown } from "../../lib/shown.js";

const COLUMNS = [
  { key: "step", width: "2.2rem", known: ({ step }) => step >= 0, label: "step", number: true, cell: ({ step }) => (step < 0 ? "–" : step) },
  { key: "j", width: "1.2rem", label: "#", number: true, cell: ({ j }) => j, title: "completion of its group" },
  { key: "reward", width: "3.1rem", known: ({ reward }) => !Number.isNaN(reward), label: "reward", number: true, cell: ({ reward }) => (Number.isNaN(reward) ? "–" : brief(reward)) },
  { key: "tokens", width: "2rem", label: "tok", number: true, cell: ({ tokens }) => count(tokens), title: "tokens" },
];
const WITH_B = [
  { key: "kl", width: "3.7rem", label: "KL k3", number: true, cell: ({ kl }) => brief(kl), title: "mean k3 of its tokens, nats" },
  { key: "most", width: "3.3rem", label: "max |d|", number: true, cell: ({ most }) => fixed(most, 2) },
];
const ALONE = [{ key: "surprise", width: "4.8rem", label: "surprise", number: true, cell: ({ surprise }) => brief(surprise), title: "mean −log p, nats a token" }];

/** rows: filtered and sorted, of all; textOf: of a completion, "" while unknown. */
export function Sequences({ rows, all, selected, textOf, compared, sort, filter, wrong }) {
  const told = COLUMNS.filter(({ known }) => !known || all.some(known));
  const columns = [...told, ...(compared ? WITH_B : ALONE), { key: "text", width: "minmax(7rem, 1fr)", label: "completion", cell: ({ s }) => html`<span class="mono">${shown(textOf(s).slice(0, 80))}</span>` }];
  const onSort = (key) => change({ sort: sort.key === key && sort.down ? `${key}+` : `${key}-` });
  const template = columns.map(({ width }) => width).join(" ");
  return html`<section class="list" aria-labelledby="list-title">
    <div class="bar"><h2 id="list-title">Sequences</h2><span class="muted small" role="status">${rows.length === all.length ? count(all.length) : `${count(rows.length)} of ${count(all.length)}`}</span></div>
    <label class="filter"><span class="unseen">Filter</span>
      <input id="filter" type="search" spellcheck=${false} placeholder="filter: reward<1 step>40 text~sum" value=${filter} onInput=${(event) => change({ filter: event.target.value })} aria-invalid=${Boolean(wrong)} />
    </label>
    ${wrong ? html`<p class="wrong small" role="alert">${wrong}</p>` : null}
    <${Rows} id="seq" label="Sequences" columns=${columns} rows=${rows} template=${template} sort=${sort} onSort=${onSort}
      selected=${rows.findIndex(({ s }) => s === selected)} onSelect=${(i) => change({ seq: rows[i].s, tok: null })} />
  </section>`;
}

const FIELDS = { step: "step", reward: "reward", tokens: "tokens", tok: "tokens", kl: "kl", k3: "kl", d: "most", surprise: "surprise" };
const COMPARE = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b, "!=": (a, b) => a !== b };

/**
 * `reward<1 step>=40 text~sum`; a bare word is looked for in the text.
 * @returns {{keep: (row: Object, text: () => string) => boolean, wrong: string}}
 */
export function readFilter(filter) {
  const tests = [];
  for (const word of filter.trim().split(/\s+/).filter(Boolean)) {
    const [, name, sign, value] = /^(\w+)(<=|>=|!=|=|<|>|~)(.*)$/.exec(word) ?? [null, "text", "~", word];
    if (name === "text" && sign === "~") tests.push((_, text) => text().includes(value));
    else if (!(name in FIELDS) || !(sign in COMPARE)) return { keep: () => true, wrong: `${word}: filter by ${Object.keys(FIELDS).join(", ")}, or text~word` };
    else if (value === "" || Number.isNaN(Number(value))) return { keep: () => true, wrong: `${word}: ${name} is compared with a number` };
    else tests.push((row) => COMPARE[sign](row[FIELDS[name]], Number(value)));
  }
  return { keep: (row, text) => tests.every((test) => test(row, text)), wrong: "" };
}

/** "kl-" is by kl, the largest first. What is not known comes last. */
export function readSort(said, compared) {
  const [, key, sign] = /^(\w+)([+-])$/.exec(said ?? "") ?? [null, compared ? "kl" : "surprise", "-"];
  return { key, down: sign === "-" };
}

export function sorted(rows, { key, down }, textOf) {
  const value = key === "text" ? ({ s }) => textOf(s) : (row) => row[key];
  const known = (x) => (typeof x === "string" ? x !== "" : !Number.isNaN(x));
  return rows.slice().sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!known(x) || !known(y)) return known(y) - known(x) || a.s - b.s;
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (down ? -order : order) || a.s - b.s;
  });
}
