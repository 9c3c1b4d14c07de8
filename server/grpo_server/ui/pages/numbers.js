/**
 * Numbers: a row of logits under four normalizers, written out naive and stable in three types, and as the server computes it.
 * Every figure comes from /ui/api/numerics; the page adds nothing of its own. A link to it carries the logits in its fragment.
 */
import { html } from "../lib/html.js";
import { CASES, useRow } from "./numbers/row.js";
import { Computed, WrittenOut } from "./numbers/tables.js";
import { Temperature, Tokens } from "./numbers/tokens.js";
import { remarks } from "./numbers/remarks.js";
import { useAnswer } from "./numbers/asking.js";

export function Page() {
  const [row, setRow] = useRow();
  const { answer, error } = useAnswer(row);
  return html`
    <h1>Numbers</h1>
    <p class="muted">From logits to probabilities: four normalizers, as books write them and as this server computes them.</p>
    <div class="bar cases" role="group" aria-label="Hard cases">
      ${CASES.map(({ name, title, row: hard }) => html`<button key=${name} type="button" title=${title} onClick=${() => setRow(hard)}>${name}</button>`)}
    </div>
    ${error ? html`<p class="notice bad" role="alert">${error.message}</p>` : null}
    <${Temperature} row=${row} setRow=${setRow} />
    <${Tokens} row=${row} setRow=${setRow} answer=${answer} />
    ${answer
      ? html`
        <div class="remarks">${remarks(answer).map((says) => html`<p key=${says}>${says}</p>`)}</div>
        <div class="numbers-tables">
          <${WrittenOut} row=${row} setRow=${setRow} answer=${answer} />
          <${Computed} row=${row} answer=${answer} />
        </div>`
      : error ? null : html`<div class="skeleton" role="status" aria-label="asking the server"></div>`}`;
}
