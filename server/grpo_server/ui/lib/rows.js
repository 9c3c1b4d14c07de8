/**
 * A table of many rows, of which only those in sight are in the document. A grid for keyboards and screen readers: up and down,
 * Home and End move the selection, `aria-rowcount` says how many there are.
 */
import { html, useEffect, useRef, useState } from "./html.js";

const ROW = 24; // pixels, as in parts.css
const AROUND = 6;

/**
 * @typedef {{key: string, label: string, cell: (row: any) => any, number?: boolean, grow?: boolean, title?: string}} Column
 * @param {{columns: Column[], rows: any[], selected: number, onSelect: (i: number) => void, label: string, id: string,
 *          sort?: {key: string, down: boolean}, onSort?: (key: string) => void, template: string}} props
 *   selected: index into rows, -1 for none. template: grid-template-columns of a row
 */
export function Rows({ columns, rows, selected, onSelect, label, id, sort, onSort, template }) {
  const box = useRef(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(480);

  useEffect(() => {
    const element = box.current; // its observer may be called once more when the page is gone
    const watch = new ResizeObserver(() => setHeight(element.clientHeight));
    watch.observe(element);
    return () => watch.disconnect();
  }, []);

  useEffect(() => {
    if (selected < 0) return;
    const [start, end] = [selected * ROW, (selected + 1) * ROW];
    const room = box.current.clientHeight - ROW; // below the header, which sticks
    if (start < box.current.scrollTop) box.current.scrollTop = start;
    else if (end > box.current.scrollTop + room) box.current.scrollTop = end - room;
  }, [selected, rows]);

  const first = Math.max(0, Math.floor(top / ROW) - AROUND);
  const last = Math.min(rows.length, Math.ceil((top + Math.min(height, 800)) / ROW) + AROUND);
  const moved = { ArrowDown: selected + 1, ArrowUp: selected - 1, Home: 0, End: rows.length - 1, PageDown: selected + 15, PageUp: selected - 15 };
  const pressed = (event) => {
    if (!(event.key in moved) || event.target !== box.current || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (rows.length) onSelect(Math.max(0, Math.min(rows.length - 1, moved[event.key])));
  };
  const style = { gridTemplateColumns: template };
  return html`<div class="rows" role="grid" aria-label=${label} aria-rowcount=${rows.length + 1} tabindex="0" ref=${box}
      aria-activedescendant=${selected >= first && selected < last ? `${id}-${selected}` : undefined}
      onKeyDown=${pressed} onScroll=${() => setTop(box.current.scrollTop)}>
    <div role="row" aria-rowindex="1" class="row head" style=${style}>
      ${columns.map((column) => html`<${Head} key=${column.key} column=${column} sort=${sort} onSort=${onSort} />`)}
    </div>
    <div role="rowgroup" class="window" style=${{ height: `${rows.length * ROW}px` }}>
      ${rows.slice(first, last).map((row, k) => html`<${Row} key=${first + k} id=${`${id}-${first + k}`} index=${first + k} row=${row} columns=${columns}
        style=${{ ...style, transform: `translateY(${(first + k) * ROW}px)` }} selected=${first + k === selected} onSelect=${onSelect} />`)}
    </div>
  </div>`;
}

function Head({ column, sort, onSort }) {
  const by = sort?.key === column.key ? (sort.down ? "descending" : "ascending") : undefined;
  const mark = by ? (sort.down ? " ↓" : " ↑") : "";
  return html`<div role="columnheader" class=${column.number ? "cell number" : "cell"} aria-sort=${by}>
    ${onSort ? html`<button type="button" class="plain" title=${column.title} onClick=${() => onSort(column.key)}>${column.label}${mark}</button>` : column.label}
  </div>`;
}

function Row({ row, index, id, columns, style, selected, onSelect }) {
  return html`<div role="row" id=${id} aria-rowindex=${index + 2} aria-selected=${selected} class="row" style=${style} onClick=${() => onSelect(index)}>
    ${columns.map((column) => html`<div role="gridcell" key=${column.key} class=${column.number ? "cell number" : "cell"}>${column.cell(row)}</div>`)}
  </div>`;
}
