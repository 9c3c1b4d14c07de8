/** Scores. */
import { html } from "../lib/html.js";

export function Page() {
  return html`<h1>Scores</h1>`;
}
