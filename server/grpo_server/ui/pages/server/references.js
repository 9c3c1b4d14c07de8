/**
 * Every hosted reference, and one that is being loaded. Who they are comes from /v1/references, which may want a key; until it
 * answers, and where there is one alone, what /metrics says of it stands here.
 */
import { askJson } from "../../lib/api.js";
import { seconds } from "../../lib/format.js";
import { html, useEffect, useState } from "../../lib/html.js";
import { reference } from "../../lib/reference.js";
import { useStore } from "../../lib/store.js";
import { Copied } from "./copied.js";
import { Identity } from "./identity.js";

const ENDED = { failed: "failed", cancelled: "was cancelled", timeout: "ran out of time" };
const KINDS = { swap: "swap", ema: "average", load: "load" };

export function References({ sample, changes }) {
  const { list, swap } = useHosted(sample);
  const loads = swap?.kind === "load" && swap.state !== "done" && !list.some(({ model }) => model === swap.reference) ? swap : null;
  if (list.length < 2 && !loads) return html`<${Identity} sample=${sample} changes=${changes} />`;
  return html`<section class="panel references" aria-labelledby="references"><h2 id="references">References</h2>
    <table>
      <thead><tr><th scope="col">name</th><th scope="col">state</th><th scope="col" class="number">version</th><th scope="col">fingerprint</th><th scope="col">dtype, mode, tier</th><th scope="col">same bits in any batch</th><th scope="col">adapter of</th></tr></thead>
      <tbody>
        ${list.map((one, k) => html`<${Row} key=${one.model} one=${one} first=${k === 0} ready=${sample.one("ready") > 0} />`)}
        ${loads?.state === "running" ? html`<tr class="loads"><th scope="row">${loads.reference}</th><td>being loaded: ${underWay(loads)}</td><td colspan="5" class="muted">${loads.model}</td></tr>` : null}
      </tbody>
    </table>
    ${loads && loads.state in ENDED ? html`<p class="small">The load of ${loads.reference} ${ENDED[loads.state]}: ${loads.error}</p>` : null}
  </section>`;
}

function Row({ one, first, ready }) {
  return html`<tr>
    <th scope="row"><b>${one.model}</b>${first ? html` <span class="muted small">default</span>` : null}</th>
    <td>${stateOf(one.swap, ready)}</td>
    <td class="number mono">${one.version}</td>
    <td><${Copied} text=${one.fingerprint} of=${` of ${one.model}`} /></td>
    <td>${one.dtype}, ${one.mode}, ${one.tier ?? "–"}</td>
    <td>${one.bitwise ? "yes" : "no"}</td>
    <td>${one.base ?? "–"}</td>
  </tr>`;
}

function stateOf(swap, ready) {
  const serves = ready ? "serves" : "does not serve";
  if (!swap || swap.state === "done") return serves;
  const kind = KINDS[swap.kind];
  if (swap.state === "running") return swap.stage === "hold" ? `${serves}; the next is up and waits for the word` : `${serves}; ${kind}: ${underWay(swap)}`;
  return html`${serves}; the last ${kind} ${ENDED[swap.state]}: <span class="muted small">${swap.error}</span>`;
}

const underWay = ({ stage, seconds: taken }) => `${stage}, ${seconds(taken)} so far`;

/** @returns {{list: Object[], swap: Object | null}} asked again when /metrics says that something has changed, or is changing */
function useHosted(sample) {
  const [hosted, setHosted] = useState({ list: [], swap: null });
  const who = useStore(reference); // there as soon as a key is
  const told = ["hosted_version", "hosted_ready", "swap_in_progress", "swaps_total"].flatMap((name) => sample.all(name).map(({ labels, value }) => `${Object.values(labels)} ${value}`));
  const now = `${told}${sample.one("swap_in_progress") ? sample.at : ""}`;
  useEffect(() => {
    const gone = new AbortController();
    const how = { signal: gone.signal, wait: false };
    Promise.all([askJson("v1/references", undefined, how), askJson("v1/reference", undefined, how)]).then(
      ([{ references: list }, { swap = null }]) => setHosted({ list, swap }),
      () => {}, // no key, or no answer: the page says so elsewhere
    );
    return () => gone.abort();
  }, [now, who]);
  return hosted;
}
