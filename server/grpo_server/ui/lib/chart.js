/**
 * A line chart by uPlot, in the page's colours, with a table of the same numbers below it. A log axis leaves out what is not
 * above zero, and what lies over eight decades below the top. Ticks have exponents where decimals would show nothing but zeros.
 */
import uPlot from "../vendor/uplot.mjs";
import { brief } from "./format.js";
import { html, useEffect, useRef } from "./html.js";
import { useStore } from "./store.js";
import { colour, dark } from "./theme.js";

const INKS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6", "--line-7", "--line-8"];
const ROWS_OF_TABLE = 200;

/**
 * @typedef {{label: string, values: (number | null)[], ink?: number, points?: boolean, dash?: number[], width?: number, fill?: boolean,
 *           quiet?: boolean}} Series
 *   ink: 0 to 7, which of the line colours; points: dots without a line; quiet: not in the legend
 * @param {{title: string, unit?: string, x: number[], xLabel?: string, xAsTime?: boolean, series: Series[], log?: boolean, height?: number,
 *          cursor?: string, range?: [number, number], onPick?: (index: number) => void, picked?: number | null}} props
 *   cursor: charts that name the same one share a cursor; range: of the y axis; onPick: is told the index of a clicked x;
 *   picked: index of the x that is marked
 */
export function Chart(props) {
  const { title, unit, x, xLabel = "x", series, height = 160 } = props;
  const box = useRef(null);
  const plot = useRef(null);
  const isDark = useStore(dark);
  const latest = useRef(props);
  latest.current = props;
  const shape = JSON.stringify([isDark, height, props.log, props.xAsTime, props.range, props.cursor, series.map(({ values, ...rest }) => rest)]);

  useEffect(() => {
    const element = box.current; // its observer may be called once more when the page is gone
    const drawn = new uPlot(options(latest, element), columns(latest.current), element);
    plot.current = drawn;
    const watch = new ResizeObserver(() => element.clientWidth && drawn.setSize({ width: element.clientWidth, height }));
    watch.observe(element);
    return () => {
      watch.disconnect();
      drawn.destroy();
      plot.current = null;
    };
  }, [shape]);

  useEffect(() => {
    plot.current?.setData(columns(latest.current));
  }, [x, ...series.map(({ values }) => values)].length ? [x, series, shape] : [shape]);

  const marked = useRef(props.picked);
  useEffect(() => {
    if (marked.current === props.picked) return; // a chart that is new draws itself, once its axes are known
    marked.current = props.picked;
    plot.current?.redraw(false);
  }, [props.picked]);

  return html`<figure class="chart">
    <figcaption>${title}${unit ? html` <span class="muted">${unit}</span>` : null}
      <span class="legend">${series.map((one, k) => one.quiet ? null : html`<span key=${one.label}><i class=${`ink ink-${(one.ink ?? k) % INKS.length}`}></i>${one.label}</span>`)}</span>
    </figcaption>
    <div class="plot" ref=${box} aria-hidden="true" style=${{ minHeight: `${height}px` }}></div>
    <${Twin} title=${title} x=${x} xLabel=${xLabel} xAsTime=${props.xAsTime} series=${series} />
  </figure>`;
}

function columns({ x, series, log }) {
  return [x, ...series.map(({ values }) => (log ? values.map((value) => (value > 0 ? value : null)) : values))];
}

function options(latest, box) {
  const { series, log, height, cursor, range, xAsTime } = { height: 160, ...latest.current };
  const line = colour("--line");
  const axis = { stroke: colour("--muted"), grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui, sans-serif" };
  return {
    width: Math.max(120, box.clientWidth),
    height,
    legend: { show: false },
    cursor: { sync: cursor ? { key: cursor } : undefined, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { time: Boolean(xAsTime), range: xAsTime ? moments : undefined }, y: { distr: log ? 3 : 1, range: range ?? (log ? decades : roomy) } },
    axes: [
      { ...axis, size: 28 },
      { ...axis, size: 52, grid: log ? { ...axis.grid, filter: powersOfTen } : axis.grid, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : brief(tick))) },
    ],
    series: [
      {},
      ...series.map((one, k) => ({
        label: one.label,
        stroke: colour(INKS[(one.ink ?? k) % INKS.length]),
        width: one.points ? 0 : (one.width ?? 1.5),
        dash: one.dash,
        fill: one.fill ? `${colour(INKS[(one.ink ?? k) % INKS.length]).replace("rgb(", "rgba(").replace(")", ", 0.15)")}` : undefined,
        spanGaps: false,
        points: { show: Boolean(one.points) || one.values.length < 3, size: one.points ? 4 : 6 },
      })),
    ],
    hooks: {
      draw: [(plot) => markPicked(plot, latest.current)],
      ready: [(plot) => plot.over.addEventListener("click", () => pick(plot, latest.current))],
    },
  };
}

/** Whole decades, eight at most: a KL of 1e-15 before the first update would flatten all that follows. */
function decades(_, low, high) {
  if (low === null || high === null) return [1, 10];
  const top = 10 ** Math.ceil(Math.log10(high));
  return [10 ** Math.floor(Math.log10(Math.max(low, top / 1e8))), top];
}

const powersOfTen = (_, ticks) => ticks.map((tick) => (Number.isInteger(Math.round(1e6 * Math.log10(tick)) / 1e6) ? tick : null));

/** All moments there are, and a minute at the least: for a single one uPlot's own limits are years apart. */
export function moments({ data: [x] }) {
  if (!x.length) return [null, null];
  const last = x[x.length - 1];
  return [Math.min(x[0], last - 60), last];
}

/** As uPlot has it, but for no line and a line at 0, which needs no room up to 100. */
function roomy(_, low, high) {
  return !low && !high ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
}

function pick(plot, { onPick }) {
  if (onPick && plot.cursor.idx !== null && plot.cursor.idx !== undefined) onPick(plot.cursor.idx);
}

function markPicked(plot, { picked, x }) {
  if (picked === null || picked === undefined || x[picked] === undefined) return;
  const at = plot.valToPos(x[picked], "x", true);
  plot.ctx.save();
  plot.ctx.strokeStyle = colour("--accent");
  plot.ctx.setLineDash([4, 3]);
  plot.ctx.beginPath();
  plot.ctx.moveTo(at, plot.bbox.top);
  plot.ctx.lineTo(at, plot.bbox.top + plot.bbox.height);
  plot.ctx.stroke();
  plot.ctx.restore();
}

/** The chart's numbers as a table; of many rows the last. It is filled when it is opened. */
function Twin({ title, x, xLabel, xAsTime, series }) {
  const details = useRef(null);
  const body = useRef(null);
  const fill = () => {
    if (!details.current.open) return;
    const from = Math.max(0, x.length - ROWS_OF_TABLE);
    body.current.replaceChildren(...x.slice(from).map((value, k) => row(xAsTime ? new Date(1000 * value).toLocaleTimeString() : brief(value), series.map(({ values }) => values[from + k]))));
  };
  useEffect(fill, [x, series]);
  return html`<details ref=${details} class="twin" onToggle=${fill}>
    <summary>Table<span class="unseen"> of ${title}</span></summary>
    <div class="scroll" tabindex="0" role="region" aria-label=${`${title}, as a table`}>
      <table>
        <thead><tr><th scope="col">${xLabel}</th>${series.map((one) => html`<th scope="col" key=${one.label}>${one.label}</th>`)}</tr></thead>
        <tbody ref=${body}></tbody>
      </table>
    </div>
  </details>`;
}

function row(x, values) {
  const tr = document.createElement("tr");
  tr.insertCell().textContent = x;
  for (const value of values) tr.insertCell().textContent = brief(value);
  return tr;
}
