/** Numbers. */
import { html } from "../lib/html.js";

export function Page() {
  return html`<h1>Numbers</h1>`;
}
