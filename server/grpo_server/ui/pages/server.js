/**
 * Server: what the process does now and did in the last ten minutes, from /metrics, which is open to all. Rates are differences of
 * counters; a quantile is the bucket that holds it, and no decimal that the buckets do not know.
 */
import { brief, count, percent } from "../lib/format.js";
import { Chart } from "../lib/chart.js";
import { html, useMemo } from "../lib/html.js";
import { References } from "./server/references.js";
import { useHistory } from "./server/history.js";
import { brieflyTimed, columns, now, quantiles, verdict } from "./server/figures.js";

const CACHE_RANGE = [-0.03, 1.03];

export function Page() {
  const { samples, trouble } = useHistory();
  return html`<h1 class="unseen">Server</h1>
    ${trouble ? html`<p class="notice bad" role="alert">${trouble}${samples.length ? " The figures below are the last ones." : ""}</p>` : null}
    ${samples.length ? html`<${Figures} samples=${samples} stale=${Boolean(trouble)} />` : trouble ? null : html`<div class="skeleton" role="status" aria-label="asking the server"></div>`}`;
}

function Figures({ samples, stale }) {
  const latest = samples[samples.length - 1];
  const figures = useMemo(() => now(samples), [samples]);
  const series = useMemo(() => columns(samples), [samples]);
  const said = verdict(samples, figures);
  return html`
    <p class=${`verdict ${stale ? "stale" : said.kind}`} role="status"><b>${stale ? "no answer" : said.kind}</b> ${stale ? "" : said.says}</p>
    <dl class="tiles">
      <${Tile} title="scored" value=${figures.scored === null ? "–" : `${count(figures.scored)}`} unit="tokens/s" />
      <${Tile} title="computed" value=${figures.computed === null ? "–" : `${count(figures.computed)}`} unit="tokens/s"
        note=${figures.scoredPerComputed === null ? "" : `${brief(figures.scoredPerComputed)} scored for each`} />
      <${Tile} title="queue" value=${count(latest.one("queue_tokens"))} unit=${latest.has("max_queue_tokens") ? `of ${count(latest.one("max_queue_tokens"))} tokens` : "tokens"}
        note=${`${plural(latest.one("queue_requests"), "request")}${figures.queuedSeconds === null ? "" : `, ${brieflyTimed(figures.queuedSeconds)} of work`}`} />
      <${Tile} title="batch fill" value=${figures.fill === null ? "–" : percent(figures.fill, 0)} note=${figures.batchTokens === null ? "" : `${count(figures.batchTokens)} tokens a batch`} />
      <${Tile} title="cache" value=${figures.hits === null ? "–" : percent(figures.hits, 0)} unit="hits" note=${`${megabytes(latest.one("cache_bytes"))} held`} />
      <${Tile} title="refused" value=${count(figures.refused)} unit="lately" note=${`${plural(latest.one("oom_splits_total"), "split")} for want of memory`} />
    </dl>
    <div class="charts">
      <${Chart} title="Tokens" unit="per second" x=${series.x} xAsTime xLabel="time" cursor="server"
        series=${[{ label: "scored", values: series.scored }, { label: "computed", values: series.computed }]} />
      <${Chart} title="Queue" unit="tokens" x=${series.x} xAsTime xLabel="time" cursor="server" series=${[{ label: "accepted, not computed", values: series.queue, fill: true }]} />
      <${Chart} title="Waiting and computing" unit="mean seconds" x=${series.x} xAsTime xLabel="time" cursor="server"
        series=${[{ label: "waited for a batch", values: series.wait }, { label: "a batch took", values: series.compute }]} />
      <${Chart} title="Batch size" unit="mean tokens" x=${series.x} xAsTime xLabel="time" cursor="server" series=${[{ label: "tokens of a batch", values: series.batch }]} />
      <${Chart} title="Cache" unit="share of completions found" x=${series.x} xAsTime xLabel="time" cursor="server" range=${CACHE_RANGE} series=${[{ label: "hits", values: series.hits }]} />
      <${Chart} title="Refused" unit="per second" x=${series.x} xAsTime xLabel="time" cursor="server"
        series=${series.refusals.length ? series.refusals : [{ label: "none", values: series.x.map(() => 0) }]} />
    </div>
    <div class="server-tables">
      <section class="panel" aria-labelledby="waits"><h2 id="waits">Half of all within, and 95 of 100</h2>
        <table>
          <thead><tr><th scope="col">what</th><th scope="col" class="number">p50</th><th scope="col" class="number">p95</th><th scope="col" class="number">of</th></tr></thead>
          <tbody>${quantiles(samples).map(({ title, p50, p95, n }) => html`<tr key=${title}><th scope="row">${title}</th>
            <td class="number mono">${p50}</td><td class="number mono">${p95}</td><td class="number mono">${count(n)}</td></tr>`)}</tbody>
        </table>
        <p class="muted small">Over the time shown above. A range is the bucket of the histogram that holds the value.</p>
      </section>
      <section class="panel" aria-labelledby="refusals"><h2 id="refusals">Refusals by code</h2>
        ${figures.codes.length
          ? html`<table>
              <thead><tr><th scope="col">code</th><th scope="col" class="number">lately</th><th scope="col" class="number">ever</th></tr></thead>
              <tbody>${figures.codes.map(({ code, lately, ever }) => html`<tr key=${code}><th scope="row"><code>${code}</code></th><td class="number mono">${count(lately)}</td><td class="number mono">${count(ever)}</td></tr>`)}</tbody>
            </table>`
          : html`<p class="muted">Nothing was refused since the start.</p>`}
      </section>
      <${References} sample=${latest} changes=${figures.changes} />
    </div>`;
}

function Tile({ title, value, unit = "", note = "" }) {
  return html`<div class="tile"><dt>${title}</dt><dd><b>${value}</b> ${unit} <span class="muted small">${note}</span></dd></div>`;
}

const plural = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

function megabytes(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(bytes ? 1 : 0)} MiB`;
}
