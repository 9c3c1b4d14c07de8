/** Who answers, with its fingerprint to copy. */
import { html } from "../../lib/html.js";
import { Copied } from "./copied.js";

const SHOWN = { model: "model", dtype: "dtype", mode: "mode", tier: "tier", bitwise: "same bits in any batch" };

export function Identity({ sample, changes }) {
  const hosted = sample.all("reference_info").filter(({ labels }) => labels.fingerprint);
  return html`<section class="panel identity" aria-labelledby="identity"><h2 id="identity">${hosted.length > 1 ? "References" : "Reference"}</h2>
    ${hosted.length ? null : html`<p class="muted">None is loaded.</p>`}
    ${hosted.map(({ labels }) => html`<dl class="pairs" key=${labels.fingerprint}>
      ${Object.entries(SHOWN).map(([name, title]) => (labels[name] === undefined ? null : html`<dt key=${`t${name}`}>${title}</dt><dd key=${name}>${labels[name]}</dd>`))}
      ${hosted.length > 1 ? null : html`<dt>version</dt><dd>${sample.one("reference_version")}</dd>`}
      <dt>fingerprint</dt><dd><${Copied} text=${labels.fingerprint} /></dd>
    </dl>`)}
    ${changes.map(({ at, version }) => html`<p key=${version} class="small">Replaced by version ${version} at ${new Date(1000 * at).toLocaleTimeString()}.</p>`)}
  </section>`;
}
