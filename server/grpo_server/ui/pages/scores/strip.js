/** d by position, and log k3 below it, of the selected completion: a canvas to look at and click, a table to read. */
import { brief, exact } from "../../lib/format.js";
import { html, useEffect, useRef } from "../../lib/html.js";
import { change } from "../../lib/route.js";
import { shown } from "../../lib/shown.js";
import { useStore } from "../../lib/store.js";
import { colour, dark } from "../../lib/theme.js";
import { gap, k3 } from "./figures.js";

const [LEFT, TOP, HIGH, GAP, LOW] = [44, 6, 84, 12, 46]; // pixels: margin, upper panel, lower panel
const MOST = 2; // nats; what is beyond is cut there and marked
const DECADES = [-6, 2]; // of k3

export function Strip(props) {
  return props.samples.starts[props.s + 1] > props.samples.starts[props.s] ? html`<${Drawn} ...${props} />` : null;
}

function Drawn({ samples, s, token, swapped, compared, pieces }) {
  const canvas = useRef(null);
  const isDark = useStore(dark);
  const [from, length] = [samples.starts[s], samples.starts[s + 1] - samples.starts[s]];
  useEffect(() => {
    const element = canvas.current; // its observer may be called once more when the page is gone
    const paint = () => draw(element, samples, from, length, token, swapped, compared);
    const watch = new ResizeObserver(paint);
    watch.observe(element);
    return () => watch.disconnect();
  }, [samples, from, length, token, swapped, compared, isDark]);
  const pick = (event) => {
    const { left, width } = canvas.current.getBoundingClientRect();
    const i = Math.floor(((event.clientX - left - LEFT) / (width - LEFT)) * length);
    if (i >= 0) change({ tok: Math.min(length - 1, i) });
  };
  const what = compared ? "d by position" : "surprise by position";
  return html`<figure class="strip">
    <figcaption>${compared ? html`<b>d</b> by position, <b>k3</b> below on a log axis` : html`<b>surprise</b> −r by position, nats`}</figcaption>
    <canvas ref=${canvas} aria-hidden="true" onClick=${pick} class=${compared ? "both" : "one"}></canvas>
    <${Twin} samples=${samples} from=${from} length=${length} swapped=${swapped} pieces=${pieces} what=${what} />
  </figure>`;
}

function draw(canvas, samples, from, length, token, swapped, compared) {
  const ratio = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  g.font = "11px system-ui, sans-serif";
  const step = (width - LEFT) / length;
  const bar = Math.max(1, Math.min(step - 1, 22));
  const inks = { muted: colour("--muted"), line: colour("--line"), up: colour("--line-1"), down: colour("--line-2"), accent: colour("--accent") };
  g.fillStyle = inks.accent;
  g.globalAlpha = 0.18;
  g.fillRect(LEFT + token * step, 0, Math.max(2, step), height);
  g.globalAlpha = 1;
  const x = (i) => LEFT + i * step + (step - bar) / 2;
  if (!compared) {
    axis(g, width, inks, [["0", TOP + HIGH], ["8", TOP]]);
    for (let i = 0; i < length; i++) {
      const value = Math.min(8, -samples.r[from + i]);
      g.fillStyle = inks.up;
      if (value > 0) g.fillRect(x(i), TOP + HIGH - (value / 8) * HIGH, bar, (value / 8) * HIGH);
    }
    return;
  }
  const middle = TOP + HIGH / 2;
  const base = TOP + HIGH + GAP + LOW;
  axis(g, width, inks, [["+2", TOP], ["0", middle], ["−2", TOP + HIGH], ["100", TOP + HIGH + GAP], ["1e-6", base]]);
  for (let i = 0; i < length; i++) {
    const d = gap(samples, from + i, swapped);
    if (Number.isNaN(d)) continue;
    const tall = (Math.min(MOST, Math.abs(d)) / MOST) * (HIGH / 2);
    g.fillStyle = d < 0 ? inks.down : inks.up;
    g.fillRect(x(i), d < 0 ? middle : middle - tall, bar, tall);
    if (Math.abs(d) > MOST) {
      g.fillStyle = inks.muted;
      g.fillRect(x(i), d < 0 ? TOP + HIGH : TOP - 2, bar, 2);
    }
    const share = (Math.log10(k3(d)) - DECADES[0]) / (DECADES[1] - DECADES[0]);
    g.fillStyle = inks.muted;
    if (share > 0) g.fillRect(x(i), base - Math.min(1, share) * LOW, bar, Math.min(1, share) * LOW);
  }
}

function axis(g, width, inks, ticks) {
  g.textAlign = "right";
  g.textBaseline = "middle";
  for (const [name, y] of ticks) {
    g.fillStyle = inks.line;
    g.fillRect(LEFT, y, width - LEFT, 1);
    g.fillStyle = inks.muted;
    g.fillText(name, LEFT - 6, y + 0.5);
  }
}

function Twin({ samples, from, length, swapped, pieces, what }) {
  const details = useRef(null);
  const body = useRef(null);
  const fill = () => {
    if (!details.current.open) return;
    const rows = Array.from({ length: Math.min(length, 1000) }, (_, i) => {
      const tr = document.createElement("tr");
      const d = gap(samples, from + i, swapped);
      for (const cell of [i + 1, shown(pieces?.[i] ?? String(samples.ids[from + i])), exact(samples.r[from + i]), exact(samples.t[from + i]), Number.isNaN(d) ? "–" : brief(d), Number.isNaN(d) ? "–" : brief(k3(d))]) {
        tr.insertCell().textContent = cell;
      }
      return tr;
    });
    body.current.replaceChildren(...rows);
  };
  useEffect(fill, [samples, from, length, swapped, pieces]);
  return html`<details ref=${details} class="twin" onToggle=${fill}>
    <summary>Table<span class="unseen"> of ${what}</span></summary>
    <div class="scroll" tabindex="0" role="region" aria-label=${`${what}, as a table`}>
      <table><thead><tr>${["position", "token", "r", "t", "d", "k3"].map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead><tbody ref=${body}></tbody></table>
    </div>
  </details>`;
}
