/**
 * Follows files that grow. Every two seconds, while the page is in sight, each chosen run is asked for the whole lines behind the
 * last byte that is known; a file that was written anew, as by a run that is resumed, is read from its beginning.
 */
import { ApiError, ask, askJson } from "../../lib/api.js";
import { useEffect, useRef, useState } from "../../lib/html.js";

export const MOST = 8;
const EVERY_MS = 2000;
const LIST_EVERY = 5; // looks at the list once in so many rounds

/**
 * @typedef {{name: string, records: Object[], file: string, next: number, cut: boolean, broken: number, trouble: string}} Followed
 *   cut: a last line is not whole; broken: lines that are no JSON
 * @param {string[] | null} wanted  null: the run that was written to last
 * @returns {{shown: boolean | null, listed: Object[] | null, followed: Followed[], trouble: Error | null}} shown: false where the
 *   server was given no runs
 */
export function useRuns(wanted) {
  const [state, setState] = useState({ shown: null, listed: null, followed: [], trouble: null });
  const latest = useRef(wanted);
  latest.current = wanted;
  const again = useRef(() => {});

  useEffect(() => {
    const gone = new AbortController();
    const kept = new Map(); // by run
    let [timer, round, listed, busy, once] = [0, 0, null, false, false];

    const look = async () => {
      timer = 0;
      if (document.hidden || busy) return;
      busy = true;
      try {
        if (round++ % LIST_EVERY === 0 || !listed) {
          const { shown, runs } = await askJson("ui/api/runs", undefined, { signal: gone.signal });
          listed = shown ? runs : [];
          setState((before) => ({ ...before, shown }));
          if (!shown) return;
        }
        const names = chosen(listed, latest.current);
        const followed = [];
        for (const name of names) {
          const run = await follow(kept.get(name) ?? fresh(name), gone.signal);
          kept.set(name, run);
          followed.push(run);
        }
        setState((before) => ({ ...before, listed, followed: same(before.followed, followed) ? before.followed : followed, trouble: null }));
      } catch (error) {
        if (gone.signal.aborted) return;
        if (!(error instanceof ApiError)) throw error;
        setState((before) => ({ ...before, trouble: error }));
      } finally {
        busy = false;
      }
      if (gone.signal.aborted) return;
      timer = setTimeout(look, once ? 0 : EVERY_MS);
      once = false;
    };
    const visible = () => {
      clearTimeout(timer);
      timer = 0;
      if (!document.hidden) look();
    };
    again.current = () => {
      if (busy) once = true;
      else visible();
    };
    document.addEventListener("visibilitychange", visible);
    look();
    return () => {
      gone.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", visible);
    };
  }, []);

  const asked = JSON.stringify(wanted);
  const first = useRef(asked);
  useEffect(() => {
    if (first.current !== asked) again.current();
    first.current = asked;
  }, [asked]);
  return state;
}

/** The names of those that are shown. */
export function chosen(listed, wanted) {
  const names = (wanted ?? []).filter((name) => listed.some((run) => run.name === name)).slice(0, MOST);
  return names.length ? names : listed.slice(0, 1).map(({ name }) => name);
}

const fresh = (name) => ({ name, records: [], file: "", next: 0, cut: false, broken: 0, trouble: "" });

const same = (before, after) => before.length === after.length && before.every((run, k) => run === after[k]);

/** What is new of one run; the same object where nothing is. */
async function follow(run, signal) {
  for (;;) {
    let response;
    try {
      response = await ask(`ui/api/runs/${encodeURIComponent(run.name)}/metrics.jsonl?after=${run.next}`, { signal });
    } catch (error) {
      if (error.status === 422 && error.param === "after" && run.next) {
        run = fresh(run.name);
        continue;
      }
      if (error.status !== 422 && error.status !== 404) throw error;
      const trouble = error.status === 404 ? "it has no metrics.jsonl" : error.message;
      return run.trouble === trouble ? run : { ...run, trouble };
    }
    const file = response.headers.get("X-File-Id");
    if (run.file && file !== run.file) {
      run = fresh(run.name);
      continue;
    }
    const [next, size] = [Number(response.headers.get("X-Next-Byte")), Number(response.headers.get("X-File-Size"))];
    const text = await response.text();
    const cut = next < size && !text;
    if (text || cut !== run.cut || run.trouble || !run.file) run = { ...run, ...parsed(run, text), file, next, cut, trouble: "" };
    if (!text || next >= size) return run;
  }
}

function parsed({ records, broken }, text) {
  const found = [];
  let bad = 0;
  for (const line of text.split("\n")) {
    if (!line.trim()) continue;
    try {
      const record = JSON.parse(line);
      if (Number.isInteger(record?.step)) found.push(record);
      else bad++;
    } catch {
      bad++;
    }
  }
  return { records: [...records, ...found], broken: broken + bad };
}
