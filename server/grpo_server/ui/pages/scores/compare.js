/** The other side: log-probs of the file, this server at another temperature or normalizer, another server's scores, nothing. */
import { html, useRef, useState } from "../../lib/html.js";
import { change } from "../../lib/route.js";
import { useStore } from "../../lib/store.js";
import { compareAgain, compareWith, compareWithNothing, held, other } from "./model.js";

export function Compare({ swapped }) {
  const { samples } = useStore(held);
  const { kind, says } = useStore(other);
  const [temperature, setTemperature] = useState(0.7);
  const [normalizer, setNormalizer] = useState("softmax");
  const input = useRef(null);
  const again = (event) => {
    event.preventDefault();
    compareAgain(Number(temperature), normalizer);
  };
  return html`<details class="compare">
    <summary>Compared with: <b>${kind === "none" ? "nothing" : says}</b></summary>
    <form class="bar" onSubmit=${again}>
      <label>This server at T <input type="number" min="0.01" step="any" required value=${temperature} onInput=${(event) => setTemperature(event.target.value)} /></label>
      <label>by <select value=${normalizer} onChange=${(event) => setNormalizer(event.target.value)}><option>softmax</option><option>stablemax</option></select></label>
      <button>Score the other side</button>
      <button type="button" onClick=${() => input.current.click()}>Another server's scores …</button>
      <input ref=${input} class="unseen" type="file" tabindex="-1" aria-label="Scores of another server" onChange=${(event) => event.target.files[0] && compareWith(event.target.files[0])} />
      <button type="button" disabled=${kind === "none"} onClick=${compareWithNothing}>Nothing</button>
      <button type="button" disabled=${kind === "none"} aria-pressed=${swapped} onClick=${() => change({ swap: swapped ? null : "1" })}>Swap sides</button>
    </form>
    <p class="muted small">d is the log-prob of the reference minus that of the other side${samples.t.length ? "" : "; there is nothing scored yet"}.</p>
  </details>`;
}
