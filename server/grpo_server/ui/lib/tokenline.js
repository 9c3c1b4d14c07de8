/**
 * Tokens as spans in a line: text that can be selected, a colour class each. By hand and not by components, because five
 * thousand of them are drawn in one go and recoloured by swapping classes. Model text goes in as text nodes alone.
 *
 * A line that can be walked (`walkable`) is a listbox; the others are text that a click selects.
 */
import { html, useEffect, useRef } from "./html.js";
import { flowing, quoted } from "./shown.js";

/** Of a longer line only this many tokens around the selected one are in the document. */
export const WINDOW = 8192;
const LABELS_AT_ONCE = 500;

/**
 * @typedef {Object} Line
 * @property {string[]} pieces  the text of each token; "" where it spells a character together with those after it
 * @property {(i: number) => string} classOf  its colour class
 * @property {(i: number) => string} labelOf  what a screen reader says behind its text
 */

/**
 * @param {{line: Line, id: string, walkable: boolean, selected: number | null, label: string,
 *          onSelect: (i: number) => void, onHover?: (i: number | null) => void}} props
 *   line: another one when a colour changes; its pieces another list only when the text does
 */
export function TokenLine({ line, id, walkable, selected, label, onSelect, onHover }) {
  const box = useRef(null);
  const drawn = useRef({ spans: [], from: 0 });
  const from = windowAround(selected ?? 0, line.pieces.length);

  useEffect(() => {
    drawn.current = { spans: draw(box.current, line, id, walkable, from), from };
  }, [line.pieces, id, walkable, from]);

  useEffect(() => {
    drawn.current.spans.forEach((span, k) => {
      const name = `tok ${line.classOf(from + k)}`;
      if (span.className !== name) span.className = name;
    });
    return walkable ? labelling(drawn.current.spans, line, from) : undefined;
  }, [line, walkable, from]);

  useEffect(() => {
    const span = walkable && selected !== null ? drawn.current.spans[selected - from] : undefined;
    if (!span) return undefined;
    span.setAttribute("aria-selected", "true");
    span.setAttribute("aria-label", labelled(line, selected));
    box.current.setAttribute("aria-activedescendant", span.id);
    scrollIntoBox(box.current, span);
    return () => span.removeAttribute("aria-selected");
  }, [line, walkable, from, selected]);

  const tokenAt = (event) => {
    const span = event.target instanceof Element ? event.target.closest(".tok") : null;
    return span && box.current.contains(span) ? Number(span.dataset.i) : null;
  };
  const picked = (event) => {
    if (!getSelection().isCollapsed) return; // text is being selected
    const i = tokenAt(event);
    if (i !== null) onSelect(i);
  };
  const role = walkable && line.pieces.length ? { role: "listbox", tabindex: 0, "aria-label": label } : {};
  return html`<div class="tokens" ref=${box} ...${role} onClick=${picked}
    onMouseOver=${(event) => onHover?.(tokenAt(event))} onMouseLeave=${() => onHover?.(null)}></div>`;
}

/** Label the first tokens now and the rest while nothing else is to be done. Returns what stops it. */
function labelling(spans, line, from) {
  const some = (start) => spans.slice(start, start + LABELS_AT_ONCE).forEach((span, k) => span.setAttribute("aria-label", labelled(line, from + start + k)));
  let [next, timer] = [LABELS_AT_ONCE, 0];
  const go = () => {
    some(next);
    next += LABELS_AT_ONCE;
    timer = next < spans.length ? setTimeout(go) : 0;
  };
  some(0);
  if (next < spans.length) timer = setTimeout(go);
  return () => clearTimeout(timer);
}

function windowAround(selected, length) {
  if (length <= WINDOW) return 0;
  const half = WINDOW / 2;
  return Math.max(0, Math.min(Math.floor(selected / half) * half - half / 2, length - WINDOW));
}

function draw(box, line, id, walkable, from) {
  const to = Math.min(line.pieces.length, from + WINDOW);
  const fragment = document.createDocumentFragment();
  const spans = [];
  if (from > 0) fragment.append(gap(`${from} tokens before`));
  let unit = null; // of tokens that spell one character together
  for (let i = from; i < to; i++) {
    const span = document.createElement("span");
    const open = line.pieces[i] === "" && i + 1 < line.pieces.length;
    const text = open ? "▏" : flowing(line.pieces[i]) || "∅";
    span.textContent = i + 1 === line.pieces.length ? text.trimEnd() : text; // no empty line behind the last one
    span.dataset.i = i;
    if (walkable) {
      span.id = `${id}-${i}`;
      span.setAttribute("role", "option");
    }
    if (open && !unit) {
      unit = document.createElement("span");
      unit.className = "unit";
      fragment.append(unit);
    }
    (unit ?? fragment).append(span);
    if (!open) unit = null;
    spans.push(span);
  }
  if (to < line.pieces.length) fragment.append(gap(`${line.pieces.length - to} tokens behind`));
  box.replaceChildren(fragment);
  return spans;
}

function gap(says) {
  const note = document.createElement("span");
  note.className = "gap";
  note.textContent = ` … ${says} … `;
  return note;
}

function labelled(line, i) {
  const text = line.pieces[i];
  const name = text === "" ? "part of the next character" : text.trim() && /[\p{L}\p{N}]/u.test(text) ? text.trim() : quoted(text);
  return `${name}, ${line.labelOf(i)}`;
}

/** Scroll the box and nothing around it. */
function scrollIntoBox(box, span) {
  if (box.scrollHeight <= box.clientHeight) return;
  const [outer, inner] = [box.getBoundingClientRect(), span.getBoundingClientRect()];
  if (inner.top < outer.top) box.scrollTop += inner.top - outer.top - 8;
  if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 8;
}
