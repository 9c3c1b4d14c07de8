/** The text of tokens, asked for when it is shown and kept. */
import { askJson } from "../../lib/api.js";
import { named } from "../../lib/reference.js";

const IDS_A_REQUEST = 20_000;

/** Texts of the sequences: each a list with one piece per id, "" where a character ends in a later id. */
export async function spell(sequences, signal) {
  const pieces = [];
  for (const part of parts(sequences)) {
    const { sequences: spelled } = await askJson("ui/api/pieces", { ...named(), sequences: part }, { signal });
    pieces.push(...spelled.map(cut));
  }
  return pieces;
}

function* parts(sequences) {
  let [part, ids] = [[], 0];
  for (const sequence of sequences) {
    if (part.length && ids + sequence.length > IDS_A_REQUEST) {
      yield part;
      [part, ids] = [[], 0];
    }
    part.push(sequence);
    ids += sequence.length;
  }
  if (part.length) yield part;
}

/** Offsets are in bytes of UTF-8. */
function cut({ text, offsets }) {
  const bytes = new TextEncoder().encode(text);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return offsets.map((start, i) => decoder.decode(bytes.subarray(start, offsets[i + 1] ?? bytes.length)));
}
