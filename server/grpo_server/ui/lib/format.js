/** Numbers as text. */

/** Every digit that the value has and none more: a float32 as the API prints it, a double as it stands in a file. */
export function exact(value) {
  if (value === null || value === undefined) return "not known";
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (Math.fround(value) !== value || (Number.isInteger(value) && Math.abs(value) < 2 ** 24)) return String(value);
  for (let digits = 6; digits < 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(Number(value.toPrecision(9)));
}

/** So many decimals; a dash for what is not known. */
export function fixed(value, decimals = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  return value.toFixed(decimals);
}

/** Three digits whatever the size, with an exponent where zeros would hide them: 0.37, 59.7, 5.8e4, 2e-5. */
export function brief(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (size >= 1e4 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  return size >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

/** 1234567 as 1,234,567. */
export function count(value) {
  return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, ",");
}

/** "1 group", "1,234 groups". */
export const many = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

/** A share as 89.6 %. */
export function percent(share, decimals = 1) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(decimals)} %` : "–";
}

/** Seconds as 0.4 s, 41 s, 3 min 20 s. */
export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** The first letters of a fingerprint. */
export function short(fingerprint) {
  return fingerprint ? fingerprint.slice(0, 12) : "–";
}
