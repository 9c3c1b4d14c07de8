/** Asks the server for a row: at most one question an animation frame, a few under way, and no answer shown after a later one. */
import { askJson } from "../../lib/api.js";
import { useEffect, useRef, useState } from "../../lib/html.js";

const UNDER_WAY = 3;

/**
 * @param {import("./row.js").Row} row
 * @returns {{answer: Object | null, error: Error | null}} answer: to the latest question that has one
 */
export function useAnswer(row) {
  const [got, setGot] = useState({ answer: null, error: null });
  const asking = useRef({ asked: 0, shown: 0, underWay: 0, frame: 0, waits: null, gone: new AbortController() });

  useEffect(() => {
    const now = asking.current;
    const ask = async () => {
      now.frame = 0;
      if (now.underWay >= UNDER_WAY || !now.waits) return; // asked when one of them is back
      const question = now.waits;
      const number = ++now.asked;
      now.waits = null;
      now.underWay++;
      const result = await askJson("ui/api/numerics", question, { signal: now.gone.signal }).then(
        (answer) => ({ answer, error: null }),
        (error) => ({ error }),
      );
      now.underWay--;
      if (now.gone.signal.aborted) return;
      if (number > now.shown) {
        now.shown = number;
        setGot((before) => ({ ...before, ...result }));
      }
      if (now.waits && !now.frame) now.frame = requestAnimationFrame(ask);
    };
    now.waits = questionOf(row);
    if (!now.frame) now.frame = requestAnimationFrame(ask);
  }, [row]);

  useEffect(() => () => (cancelAnimationFrame(asking.current.frame), asking.current.gone.abort()), []);
  return got;
}

function questionOf({ logits, masked, temperature, normalizer, target }) {
  return { logits, mask: masked.map((is) => (is ? 0 : 1)), temperature, normalizer, target };
}
