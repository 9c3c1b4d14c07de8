/** One token: its figures as the server gave them, digit for digit, and what the reference would rather have had. */
import { brief, exact, percent } from "../../lib/format.js";
import { html, useState } from "../../lib/html.js";
import { address } from "../../lib/route.js";
import { quoted } from "../../lib/shown.js";
import { gap, k3 } from "./figures.js";
import { TOP_K } from "./scoring.js";

export function Token({ samples, details, texts, names, s, i, swapped, compared, side, kl }) {
  const k = samples.group[s];
  const at = samples.starts[s] + i;
  const length = samples.starts[s + 1] - samples.starts[s];
  if (i >= length) return html`<aside class="token" aria-label="Token"><h2>Token</h2><p class="muted">This completion has no tokens.</p></aside>`;
  const inGroup = at - samples.starts[samples.groups[k].first];
  const answer = details.get(k);
  const piece = texts.get(k)?.completions[s - samples.groups[k].first]?.[i];
  const d = gap(samples, at, swapped);
  const failed = answer?.status?.[s - samples.groups[k].first] === 1;
  const value = (number) => (number === undefined || (Number.isNaN(number) && !failed) ? "not known" : exact(number));
  const pairs = [
    ["position", `${i + 1} of ${length}`],
    ["token", piece === undefined ? "–" : piece === "" ? "part of a character" : quoted(piece)],
    ["id", samples.ids[at] < 0 ? "not known" : samples.ids[at]],
    ["reference r", value(samples.r[at])],
    ...(compared ? [[`${side} t`, value(samples.t[at])], [swapped ? "d = t − r" : "d = r − t", Number.isNaN(d) ? value(d) : exact(Number(d.toPrecision(8)))], ["k3", Number.isNaN(d) ? "–" : brief(k3(d))], ["share of the KL", kl > 0 ? percent(k3(d) / kl) : "–"]] : []),
    ["rank", answer?.rank ? answer.rank[inGroup] : "not known"],
    ["entropy", value(samples.entropy[at])],
    ...(answer?.logsumexp ? [["log-sum-exp", value(answer.logsumexp[inGroup])]] : []),
  ];
  const width = answer?.topIds ? TOP_K : 0;
  const best = Array.from({ length: width }, (_, j) => ({ id: answer.topIds[inGroup * width + j], logprob: answer.topLogprobs[inGroup * width + j] }));
  return html`<aside class="token" aria-labelledby="token-title">
    <h2 id="token-title">Token</h2>
    ${failed ? html`<p class="wrong small">This completion has a figure that is not finite: use none of them.</p>` : null}
    <dl class="pairs">${pairs.map(([name, shown]) => html`<dt key=${name}>${name}</dt><dd>${shown}</dd>`)}</dl>
    <${Best} best=${best} id=${samples.ids[at]} own=${samples.r[at]} piece=${piece} names=${names} />
    <div class="bar">
      ${best.length ? html`<a class="button" href=${address("ui/softmax", { logits: logitsOf(best, answer.logsumexp?.[inGroup]).join(","), normalizer: samples.groups[k].normalizer === "softmax" ? null : samples.groups[k].normalizer })}>Open in Numbers</a>` : null}
      <${Copy} value=${{ ...Object.fromEntries(pairs), best }} />
    </div>
  </aside>`;
}

/** Logits that have these log-probs, at the temperature of the group. */
function logitsOf(best, logsumexp) {
  return best.map(({ logprob }) => exact(Math.fround(logprob + (Number.isFinite(logsumexp) ? logsumexp : 0))));
}

function Best({ best, id, own, piece, names }) {
  if (!best.length) return html`<p class="muted small">Its best tokens are not known.</p>`;
  const among = best.some((one) => one.id === id);
  const rows = among || Number.isNaN(own) ? best : [...best, { id, logprob: own, far: true }];
  return html`<h3>The reference prefers</h3>
    <ol class="best">${rows.map(({ id: one, logprob, far }) => html`<li key=${one} class=${one === id ? "own" : ""}>
      <span class="mono name">${one === id && piece ? quoted(piece) : names.get(one) === undefined ? one : quoted(names.get(one))}</span>
      <span class="track" aria-hidden="true"><i style=${{ width: `${100 * Math.exp(logprob)}%` }}></i></span>
      <span class="mono number">${percent(Math.exp(logprob))}</span>${far ? html`<span class="unseen">, not among the best</span>` : null}
    </li>`)}</ol>`;
}

function Copy({ value }) {
  const [said, setSaid] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(JSON.stringify(value));
      setSaid("copied");
    } catch {
      setSaid("the browser forbids it here");
    }
  };
  return html`<button type="button" onClick=${copy}>Copy</button><span class="muted small" role="status">${said}</span>`;
}
