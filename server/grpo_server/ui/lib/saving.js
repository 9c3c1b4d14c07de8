/** Files that the page hands to its user. */

/** @param {Blob} blob */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Rows as CSV (RFC 4180). What a spreadsheet would take for a formula gets an apostrophe in front. */
export function csv(head, rows) {
  return new Blob([[head, ...rows].map((row) => row.map(csvField).join(",")).join("\r\n"), "\r\n"], { type: "text/csv" });
}

function csvField(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
