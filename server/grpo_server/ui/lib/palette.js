/**
 * The colours of tokens: 25 steps from orange over none to blue for d, 13 of violet for what only grows. Made in OKLCH, so that
 * both sides of d are equally light, and written as hex. The domains are fixed, so that two pictures can be compared; what lies
 * beyond is marked by a bar. The text stays the body's colour: tests hold its contrast on every one of them.
 */
import { dark } from "./theme.js";

const STEPS = 12;
const HUES = { orange: 62, blue: 252, violet: 300 };

/** What a token can be coloured by: `at` maps its value to -1..1 (diverging) or 0..1, |at| > 1 being beyond the domain. */
export const SCALES = {
  d: { label: "d = reference − policy", diverging: true, at: (d) => d / 2, ends: ["−2", "+2"] },
  r: { label: "reference: surprise", at: (r) => -r / 8, ends: ["0", "8 nats"] },
  t: { label: "policy: surprise", at: (t) => -t / 8, ends: ["0", "8 nats"] },
  entropy: { label: "reference: entropy", at: (h) => h / 6, ends: ["0", "6 nats"] },
  rank: { label: "reference: rank", at: (rank) => Math.log10(rank + 1) / 4, ends: ["best", "10⁴"] },
};

/**
 * @param {keyof SCALES} by
 * @param {number | null} value
 * @returns {string} the class of a token, "" where the value is not known
 */
export function tokenClass(by, value) {
  if (value === null || value === undefined || Number.isNaN(value)) return value === null || value === undefined ? "" : "nonfinite";
  const { at, diverging } = SCALES[by];
  const x = at(value);
  const step = Math.round(Math.max(-1, Math.min(1, x)) * STEPS);
  const name = diverging ? `d${step + STEPS}` : `s${Math.max(0, step)}`;
  return Math.abs(x) > 1 ? `${name} beyond` : name;
}

/** The colours of a scale from its low end to its high end, for a legend or a canvas. */
export function ramp(by) {
  const from = SCALES[by].diverging ? -STEPS : 0;
  return Array.from({ length: STEPS - from + 1 }, (_, i) => hexOf(from + i, SCALES[by].diverging, dark.get()));
}

/** The colour behind a token, for a canvas; null where it has none. */
export function tokenColour(by, value) {
  const step = /^[ds](\d+)/.exec(tokenClass(by, value));
  return step ? ramp(by)[Number(step[1])] : null;
}

/** Put the classes into the document, and anew when the theme changes. */
export function startPalette() {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  const write = () => {
    const rules = [];
    for (let i = -STEPS; i <= STEPS; i++) rules.push(`.d${i + STEPS}{background:${hexOf(i, true, dark.get())}}`);
    for (let i = 0; i <= STEPS; i++) rules.push(`.s${i}{background:${hexOf(i, false, dark.get())}}`);
    sheet.replaceSync(rules.join(""));
  };
  write();
  dark.watch(write);
}

function hexOf(step, diverging, isDark) {
  const share = Math.abs(step) / STEPS;
  if (diverging) {
    const hue = step < 0 ? HUES.orange : HUES.blue;
    return isDark
      ? hex(0.24 + 0.24 * share, 0.115 * share ** 0.8, hue)
      : hex(0.985 - 0.235 * share, 0.125 * share ** 0.8, hue);
  }
  return isDark
    ? hex(0.22 + 0.26 * share, 0.11 * share ** 0.8, HUES.violet)
    : hex(0.985 - 0.245 * share, 0.12 * share ** 0.8, HUES.violet);
}

/** OKLCH to sRGB, by the matrices of B. Ottosson, "A perceptual color space for image processing" (2020). */
function hex(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return `#${linear.map((value) => byte(gamma(Math.max(0, value)))).join("")}`;
}

const gamma = (v) => (v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055);
const byte = (v) => Math.round(255 * Math.min(1, v)).toString(16).padStart(2, "0");
