/**
 * A token's text as it is shown. What a reader could not see, or what would move its neighbours (controls, bidirectional marks,
 * zero-width characters, lone surrogates), stands as an escape; blanks at the edges and newlines as marks.
 */

const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]|(?! )\p{Zs}/gu;
const MARKS = { "\n": "⏎", "\t": "→", "\r": "␍" };

/** @param {string} text */
export function shown(text) {
  const edges = text.replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length));
  const seen = edges.replace(UNSEEN, (character) => MARKS[character] ?? escape(character));
  return /^\p{M}/u.test(seen) ? `◌${seen}` : seen;
}

/** The same with a real line break behind each newline's mark, for text that runs over lines. */
export function flowing(text) {
  return shown(text).replaceAll("⏎", "⏎\n");
}

/** In quotes, as a JSON string, for a panel or a label. */
export function quoted(text) {
  return JSON.stringify(text).replace(UNSEEN, escape);
}

function escape(character) {
  const code = character.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
}
