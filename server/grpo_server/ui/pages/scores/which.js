/** Which of the server's references is asked; nothing where there is one. */
import { html } from "../../lib/html.js";
import { reference, references, which } from "../../lib/reference.js";
import { change } from "../../lib/route.js";
import { useStore } from "../../lib/store.js";
import { askReference } from "./model.js";

export function Which() {
  const hosted = useStore(references);
  const who = useStore(reference);
  const asked = useStore(which);
  const names = hosted.map(({ model }) => model);
  const shown = asked ?? who?.model;
  if (names.length < 2 && (asked === null || names.includes(asked))) return null;
  return html`<label>Reference <select value=${shown} onChange=${(event) => ask(event.target.value)}>
    ${names.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
    ${names.includes(shown) ? null : html`<option value=${shown}>${shown} (not here)</option>`}
  </select></label>`;
}

/** It goes into the address, so that a link asks the same one. */
export function ask(name) {
  const other = name === references.get()[0]?.model ? null : name;
  change({ ref: other });
  askReference(other);
}

/** Follow the address, and tell it on coming back from another page. */
export function followAddress(ref) {
  if (ref === undefined && which.get() !== null) change({ ref: which.get() });
  else if (ref !== undefined) askReference(ref);
}
