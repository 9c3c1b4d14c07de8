/** Where the KL is: the same token after the same token counted once, the largest sums of k3 first. */
import { count, fixed, percent } from "../../lib/format.js";
import { html } from "../../lib/html.js";
import { change } from "../../lib/route.js";
import { shown } from "../../lib/shown.js";

export function Where({ rows, names }) {
  if (!rows.length) return null;
  const name = (id) => (id < 0 ? "▸" : names.get(id) === undefined ? `[${id}]` : shown(names.get(id)));
  return html`<section class="where" aria-labelledby="where-title">
    <h2 id="where-title">Where the KL is</h2>
    <div class="scroll" tabindex="0" role="region" aria-label="Where the KL is, scrollable">
      <table>
        <thead><tr><th scope="col">after, token</th><th scope="col" class="number">times</th><th scope="col" class="number">mean d</th><th scope="col" class="number">of all k3</th><th scope="col"><span class="unseen">show</span></th></tr></thead>
        <tbody>${rows.map(({ before, id, times, d, share, at }) => html`<tr key=${`${before} ${id}`}>
          <td class="mono"><span class="muted">${name(before)}</span><b>${name(id)}</b></td>
          <td class="number">${count(times)}</td><td class="number">${fixed(d, 2)}</td><td class="number">${percent(share)}</td>
          <td><button type="button" class="plain" onClick=${() => change({ seq: at[0], tok: at[1] }, { push: true })}>show<span class="unseen"> ${name(id)}</span></button></td>
        </tr>`)}</tbody>
      </table>
    </div>
  </section>`;
}
