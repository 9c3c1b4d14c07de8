/** The tokens that `n` and `p` go to: those of the finding that is shown, or those with a large gap or surprise. */
import { gap } from "./figures.js";

const FAR = 1; // nats of |d|
const SURPRISING = 5; // nats of -r

/** @returns {[number, number] | null} completion and position; in the order of the list, through its end to its beginning */
export function nextOutlier({ samples, rows, shown, compared, swapped, selected, token, forward }) {
  const order = rows.map(({ s }) => s);
  const here = Math.max(0, order.indexOf(selected));
  const marked = shown && new Set(shown.map(([s, i]) => `${s} ${i}`));
  const far = (s, i) => {
    if (marked) return marked.has(`${s} ${i}`);
    const at = samples.starts[s] + i;
    return compared ? Math.abs(gap(samples, at, swapped)) > FAR : -samples.r[at] > SURPRISING;
  };
  const step = forward ? 1 : -1;
  for (let k = 0; k <= order.length; k++) {
    const s = order[(((here + step * k) % order.length) + order.length) % order.length];
    const length = samples.starts[s + 1] - samples.starts[s];
    const start = k === 0 ? token + step : forward ? 0 : length - 1;
    for (let i = start; i >= 0 && i < length; i += step) if (far(s, i)) return [s, i];
  }
  return null;
}
