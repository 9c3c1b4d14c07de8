/**
 * The row that is looked at, and how it stands in the fragment: `logits=1.2,4.7,-inf&T=0.7&normalizer=stablemax&y=2`, with `names` as a JSON
 * list where the tokens have names. A logit of -inf is a masked token.
 */
import { useCallback, useEffect, useRef, useState } from "../../lib/html.js";
import { change, useFragment } from "../../lib/route.js";

export const NORMALIZERS = { softmax: "softmax", stablemax: "StableMax", sparsemax: "sparsemax", entmax15: "entmax-1.5" };
export const MOST = 64;
const WRITE_AFTER_MS = 300; // browsers complain of an address that changes with every move of a slider

/**
 * @typedef {{logits: number[], masked: boolean[], names: string[] | null, temperature: number, normalizer: string, target: number | null}} Row
 * @returns {Row}
 */
export function rowOf(logits, rest = {}) {
  const masked = logits.map((x) => x === -Infinity);
  return {
    logits: logits.map((x) => (x === -Infinity ? 0 : x)),
    masked,
    names: null,
    temperature: 1,
    normalizer: "softmax",
    target: null,
    ...rest,
  };
}

const TENSES = [1.2, 4.7, 3.1, 0.5, 2.9];

/** The hard cases of docs/stability.md, and a row to begin with. */
export const CASES = [
  { name: "plain", title: "Five logits of the size that models give", row: rowOf(TENSES, { target: 2 }) },
  { name: "92", title: "exp(92) overflows: inf / inf", row: rowOf([1.2, 92, 3.1, 0.5, 2.9], { target: 2 }) },
  { name: "12", title: "exp(12) overflows in fp16 alone", row: rowOf([0, 12, 3, 1, 2], { target: 1 }) },
  { name: "−1000", title: "Every exp underflows: 0 / 0", row: rowOf([-1000, -1001, -1002], { target: 1 }) },
  { name: "equal", title: "All the same, and large", row: rowOf([100, 100, 100], { target: 0 }) },
  { name: "−inf", title: "A masked token", row: rowOf([1, -Infinity, 3, 0, 2], { target: 2 }) },
  { name: "all −inf", title: "A row in which every token is masked", row: rowOf([-Infinity, -Infinity, -Infinity], { target: 0 }) },
  { name: "confident", title: "The target leads by 40: loss and gradient round to 0", row: rowOf([0, 40], { target: 1 }) },
];

/** @param {Object} state  the fragment's values  @returns {Row | null} null where it holds no logits that can be read */
export function rowFrom(state) {
  if (!state.logits) return null;
  const logits = state.logits.split(",").slice(0, MOST).map((text) => (text.trim() === "-inf" ? -Infinity : text.trim() === "" ? NaN : Number(text)));
  if (logits.some((x) => Number.isNaN(x) || x === Infinity)) return null;
  const temperature = Number(state.T ?? 1);
  const target = state.y === undefined ? null : Number(state.y);
  return rowOf(logits, {
    names: namesFrom(state.names, logits.length),
    temperature: temperature > 0 && temperature < Infinity ? temperature : 1,
    normalizer: state.normalizer in NORMALIZERS ? state.normalizer : "softmax",
    target: Number.isInteger(target) && target >= 0 && target < logits.length ? target : null,
  });
}

function namesFrom(text, count) {
  try {
    const names = JSON.parse(text);
    return Array.isArray(names) && names.length === count && names.every((name) => typeof name === "string") ? names : null;
  } catch {
    return null;
  }
}

/** @param {Row} row */
export function stateOf(row) {
  return {
    logits: row.logits.map((x, i) => (row.masked[i] ? "-inf" : String(x))).join(","),
    T: row.temperature === 1 ? null : row.temperature,
    normalizer: row.normalizer === "softmax" ? null : row.normalizer,
    y: row.target,
    names: row.names && JSON.stringify(row.names),
  };
}

/** The row of the fragment, kept there as it changes; a link that is followed brings another. */
export function useRow() {
  const state = useFragment();
  const [row, setRow] = useState(() => rowFrom(state) ?? CASES[0].row);
  const written = useRef(JSON.stringify(state));

  useEffect(() => {
    if (JSON.stringify(state) === written.current) return;
    written.current = JSON.stringify(state);
    setRow(rowFrom(state) ?? CASES[0].row);
  }, [state]);

  const shown = useRef(row);
  useEffect(() => {
    if (shown.current === row) return undefined;
    shown.current = row;
    const timer = setTimeout(() => {
      const next = stateOf(row);
      written.current = JSON.stringify(Object.fromEntries(Object.entries(next).filter(([, v]) => v !== null && v !== "").map(([k, v]) => [k, String(v)])));
      change(next);
    }, WRITE_AFTER_MS);
    return () => clearTimeout(timer);
  }, [row]);

  return [row, useCallback((changes) => setRow((now) => ({ ...now, ...changes })), [])];
}
