/** The other side: log-probs of the file, this server at another temperature or normalizer, another server's scores, nothing. */
import { html, useRef, useState } from "../../lib/html.js";
import { reference, references } from "../../lib/reference.js";
import { change } from "../../lib/route.js";
import { useStore } from "../../lib/store.js";
import { compareAgain, compareWith, compareWithNothing, held, other } from "./model.js";

export function Compare({ swapped }) {
  const { samples } = useStore(held);
  const { kind, says } = useStore(other);
  const [temperature, setTemperature] = useState(0.7);
  const [normalizer, setNormalizer] = useState("softmax");
  const hosted = useStore(references);
  const who = useStore(reference);
  const [chosen, setChosen] = useState(null);
  const model = hosted.length > 1 ? (chosen ?? who?.model) : undefined;
  const input = useRef(null);
  const again = (event) => {
    event.preventDefault();
    compareAgain(Number(temperature), normalizer, model);
  };
  return html`<details class="compare">
    <summary>Compared with: <b>${kind === "none" ? "nothing" : says}</b></summary>
    <form class="bar" onSubmit=${again}>
      ${model === undefined ? null : html`<label>Other side <select value=${model} onChange=${(event) => setChosen(event.target.value)}>${hosted.map(({ model: name }) => html`<option key=${name}>${name}</option>`)}</select></label>`}
      <label>${model === undefined ? "This server at T" : "at T"} <input type="number" min="0.01" step="any" required value=${temperature} onInput=${(event) => setTemperature(event.target.value)} /></label>
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
