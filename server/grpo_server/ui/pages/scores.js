/** Scores: which tokens the reference and the policy see differently, and why. */
import { count, many, seconds, short } from "../lib/format.js";
import { html, useEffect, useMemo, useState } from "../lib/html.js";
import { useKeys } from "../lib/keyboard.js";
import { reference, references, which } from "../lib/reference.js";
import { change, useFragment } from "../lib/route.js";
import { useStore } from "../lib/store.js";
import { Compare } from "./scores/compare.js";
import { saveBundle, savePicture, saveSequences, saveTokens } from "./scores/exporting.js";
import { contexts, rowsOf } from "./scores/figures.js";
import { Findings } from "./scores/findings.js";
import { Group, coloursFor } from "./scores/group.js";
import { details, found, held, lookAt, openRun, other, scoreRest, texts, toScore, trouble, unscored, work } from "./scores/model.js";
import { nextOutlier } from "./scores/outliers.js";
import { useNames } from "./scores/names.js";
import { Sequences, readFilter, readSort, sorted } from "./scores/sequences.js";
import { Sources } from "./scores/sources.js";
import { Strip } from "./scores/strip.js";
import { Token } from "./scores/token.js";
import { Where } from "./scores/where.js";
import { Which, ask, followAddress } from "./scores/which.js";

export function Page() {
  const open = useStore(held);
  const { run, sources, ref } = useFragment();
  useEffect(() => followAddress(ref), [ref]);
  useEffect(() => {
    if (run && !(held.get()?.source.kind === "run" && held.get().source.name === run)) openRun(run);
  }, [run]);
  return html`<h1 class="unseen">Scores</h1>
    <${Under} />
    <${Trouble} />
    ${!open || sources ? html`<${Sources} onClose=${open ? () => change({ sources: null }) : null} />` : null}
    ${open && !sources ? html`<${Opened} open=${open} />` : null}`;
}

/** What is under way: how far, how long, and a way out. */
function Under() {
  const doing = useStore(work);
  const [, tick] = useState(0);
  useEffect(() => {
    if (!doing) return undefined;
    const timer = setInterval(() => tick((n) => n + 1), 200);
    return () => clearInterval(timer);
  }, [doing?.started]);
  if (!doing) return null;
  const elapsed = (Date.now() - doing.started) / 1000;
  return html`<div class="notice under" role="group" aria-label="Under way">
    <span role="status">${doing.what} …</span>
    ${doing.total ? html`<progress aria-label="Progress" max=${doing.total} value=${doing.done}></progress>` : html`<progress aria-label="Progress"></progress>`}
    <span class="muted mono">${elapsed < 1 ? "" : seconds(elapsed)}</span>
    <button type="button" onClick=${doing.cancel}>Cancel</button>
  </div>`;
}

function Trouble() {
  const wrong = useStore(trouble);
  const who = useStore(reference);
  const open = useStore(held);
  const hosted = useStore(references);
  if (!wrong || (wrong.param && !open)) return null; // beside its field
  if (wrong.code === "fingerprint_mismatch") {
    const theirs = open.samples.groups.find(({ fingerprint }) => fingerprint)?.fingerprint;
    const here = hosted.find(({ fingerprint }) => fingerprint === theirs);
    return html`<div class="notice bad" role="alert">
      <p><b>Another reference than in the file.</b> The file was scored by <code>${short(theirs)}</code>; <code>${short(who?.fingerprint)}</code> answers here.</p>
      ${here ? html`<button type="button" class="main" onClick=${() => ask(here.model)}>Score with ${here.model}, which did</button>` : null}
      <button type="button" onClick=${() => scoreRest({ pin: false })}>Score with this one all the same</button>
    </div>`;
  }
  return html`<div class="notice bad" role="alert"><p>${wrong.param ? html`<code>${wrong.param}</code>: ` : null}${wrong.message}</p></div>`;
}

function Opened({ open }) {
  const { samples, family, source } = open;
  const state = useFragment();
  const detail = useStore(details);
  const spelled = useStore(texts);
  const report = useStore(found);
  const who = useStore(reference);
  const asked = useStore(which);
  const swapped = state.swap === "1";
  const side = useStore(other).kind === "file" ? "policy" : "other side";
  const [hovered, setHovered] = useState(null);

  const compared = useMemo(() => samples.t.some((value) => !Number.isNaN(value)), [samples]);
  const all = useMemo(() => rowsOf(samples, swapped), [samples, swapped]);
  const where = useMemo(() => (compared ? contexts(samples, swapped) : { rows: [], total: 0 }), [samples, swapped, compared]);
  const textOf = (s) => samples.texts[s] ?? spelled.get(samples.group[s])?.completions[s - samples.groups[samples.group[s]].first]?.join("") ?? "";
  const sort = readSort(state.sort, compared);
  const { keep, wrong } = readFilter(state.filter ?? "");
  const shown = state.show ? (report?.findings.find(({ name }) => name === state.show)?.tokens ?? null) : null;
  const rows = useMemo(() => {
    const marked = shown && new Set(shown.map(([s]) => s));
    return sorted(all.filter((row) => (!marked || marked.has(row.s)) && keep(row, () => textOf(row.s))), sort, textOf);
  }, [all, state.filter, state.sort, state.show, report, compared, spelled]);

  const ofStep = state.step === undefined ? undefined : all.find(({ step }) => step === Number(state.step));
  const wanted = Number(state.seq ?? (ofStep ?? rows[0])?.s ?? 0);
  const selected = Number.isInteger(wanted) && wanted >= 0 && wanted < all.length ? wanted : 0;
  const length = samples.starts[selected + 1] - samples.starts[selected];
  const token = Math.max(0, Math.min(length - 1, Math.trunc(Number(state.tok ?? worst(samples, selected, compared))) || 0));
  const members = useMemo(() => all.filter((row) => family[row.group] === family[samples.group[selected]]).map(({ s }) => s), [all, family, samples.group[selected]]);
  const by = coloursFor(compared).includes(state.by) ? state.by : coloursFor(compared)[0];
  const at = hovered && hovered.s < all.length && hovered.i < samples.starts[hovered.s + 1] - samples.starts[hovered.s] ? hovered : { s: selected, i: token };
  const names = useNames([...bestIds(detail, samples, at), ...where.rows.flatMap(({ before, id }) => [before, id])]);

  useEffect(() => {
    const controller = new AbortController();
    const timer = setTimeout(() => lookAt([...new Set(members.map((s) => samples.group[s]))], controller.signal).catch(() => {}), 120);
    return () => (clearTimeout(timer), controller.abort());
  }, [members, samples.starts, asked]);

  useKeys(keysFor({ rows, all, samples, selected, token, length, shown, compared, by, swapped, members }));
  const what = { rows, samples, texts: spelled, details: detail, swapped, textOf, members, by, findings: report, reference: who };
  const left = unscored();
  return html`
    <div class="bar opened">
      <span><b>${source.name}</b> <span class="muted">${many(samples.groups.length, "group")}, ${many(samples.group.length, "completion")}, ${many(samples.ids.length, "token")}${samples.cutLines ? "; its last line is cut off and left out" : ""}</span></span>
      <button type="button" onClick=${() => change({ sources: "1" }, { push: true })}>Open other</button>
      <${Which} />
      <${Compare} swapped=${swapped} />
      <${Export} what=${what} />
    </div>
    ${left.length ? html`<div class="notice"><p>${many(left.length, "group")} without log-probs of the reference, about ${count(toScore())} tokens. <button type="button" class="main" onClick=${() => scoreRest()}>Score them</button></p></div>` : null}
    ${source.kind === "typed" && !compared ? null : html`<${Findings} />`}
    <div class="columns">
      <${Sequences} rows=${rows} all=${all} selected=${selected} textOf=${textOf} compared=${compared} sort=${sort} filter=${state.filter ?? ""} wrong=${wrong} />
      <div class="middle">
        <${Group} samples=${samples} details=${detail} texts=${spelled} members=${members} selected=${selected} token=${token} by=${by} swapped=${swapped} compared=${compared} side=${side} onHover=${setHovered} rows=${all} />
        <${Strip} samples=${samples} s=${selected} token=${token} swapped=${swapped} compared=${compared} pieces=${spelled.get(samples.group[selected])?.completions[selected - samples.groups[samples.group[selected]].first]} />
        <${Where} rows=${where.rows} names=${names} />
      </div>
      <${Token} samples=${samples} details=${detail} texts=${spelled} names=${names} s=${at.s} i=${at.i} swapped=${swapped} compared=${compared} side=${side} kl=${where.total} />
    </div>`;
}

/** Where a completion is entered: at its largest gap, or at its most surprising token. */
function worst(samples, s, compared) {
  let [at, most] = [0, -1];
  for (let i = samples.starts[s]; i < samples.starts[s + 1]; i++) {
    const size = compared ? Math.abs(samples.r[i] - samples.t[i]) : -samples.r[i];
    if (size > most) [at, most] = [i - samples.starts[s], size];
  }
  return at;
}

function bestIds(detail, samples, { s, i }) {
  const answer = detail.get(samples.group[s]);
  if (!answer?.topIds || !answer.logprobs.length) return [];
  const width = answer.topIds.length / answer.logprobs.length;
  const at = samples.starts[s] + i - samples.starts[samples.groups[samples.group[s]].first];
  return [...answer.topIds.subarray(at * width, (at + 1) * width)];
}

function Export({ what }) {
  const [said, setSaid] = useState("");
  return html`<details class="export">
    <summary>Save</summary>
    <div class="bar">
      <button type="button" onClick=${() => saveSequences(what)}>Sequences, CSV</button>
      <button type="button" onClick=${() => saveTokens(what)}>Tokens, CSV</button>
      <button type="button" onClick=${() => savePicture(what)}>Group, PNG</button>
      <button type="button" onClick=${() => setSaid(saveBundle(what))} title="Text, ids and figures in one file: opened here, it shows the same without asking a server">Bundle</button>
      <span class="muted small" role="status">${said}</span>
    </div>
  </details>`;
}

function keysFor({ rows, all, samples, selected, token, length, shown, compared, by, swapped, members }) {
  const to = (i) => () => change({ tok: Math.max(0, Math.min(length - 1, i)) });
  const among = (step) => () => {
    const next = members[members.indexOf(selected) + step];
    if (next !== undefined) change({ seq: next, tok: Math.min(token, Math.max(0, samples.starts[next + 1] - samples.starts[next] - 1)) });
  };
  const outlier = (forward) => () => {
    const found = nextOutlier({ samples, rows, shown, compared, swapped, selected, token, forward });
    if (found) change({ seq: found[0], tok: found[1] });
  };
  const step = (by) => () => {
    const steps = [...new Set(all.map((row) => row.step))].sort((a, b) => a - b);
    const next = steps[steps.indexOf(samples.groups[samples.group[selected]].step) + by];
    const row = all.find((one) => one.step === next);
    if (row) change({ seq: row.s, tok: 0 });
  };
  const colours = coloursFor(compared);
  return [
    { key: "ArrowRight", shown: "→", does: "next token", run: to(token + 1) },
    { key: "ArrowLeft", shown: "←", does: "previous token", run: to(token - 1) },
    { key: "ArrowDown", shown: "↓", does: "next completion of the group", run: among(1) },
    { key: "ArrowUp", shown: "↑", does: "previous completion of the group", run: among(-1) },
    { key: "Home", does: "first token", run: to(0) },
    { key: "End", does: "last token", run: to(length - 1) },
    { key: "n", does: "next outlier, or token of the finding that is shown", run: outlier(true) },
    { key: "p", does: "previous one", run: outlier(false) },
    { key: "]", does: "next step", run: step(1) },
    { key: "[", does: "previous step", run: step(-1) },
    { key: "c", does: "next colour", run: () => change({ by: colours[(colours.indexOf(by) + 1) % colours.length] }) },
    { key: "x", does: "swap sides", run: () => change({ swap: swapped ? null : "1" }) },
    { key: "/", does: "filter", run: () => document.getElementById("filter").focus() },
  ];
}
