/** The text of single ids, for the best tokens and the contexts: asked for in one go, and kept. */
import { useEffect } from "../../lib/html.js";
import { createStore, useStore } from "../../lib/store.js";
import { which } from "../../lib/reference.js";
import { spell } from "./pieces.js";

const known = createStore(new Map());
which.watch(() => known.set(new Map())); // another tokenizer

/** @param {number[]} ids  @returns {Map<number, string>} what is known of them by now */
export function useNames(ids) {
  const names = useStore(known);
  const missing = [...new Set(ids)].filter((id) => id >= 0 && !names.has(id));
  useEffect(() => {
    if (!missing.length) return undefined;
    const controller = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const pieces = await spell(missing.map((id) => [id]), controller.signal);
        if (!controller.signal.aborted) known.set(new Map([...known.get(), ...missing.map((id, i) => [id, pieces[i][0]])]));
      } catch {
        // a reference without a tokenizer: the ids stand for themselves
      }
    }, 60);
    return () => (clearTimeout(timer), controller.abort());
  }, [missing.join(" ")]);
  return names;
}
