/** Asks /metrics every two seconds while the page is in sight, and keeps ten minutes of answers. */
import { ask } from "../../lib/api.js";
import { useEffect, useState } from "../../lib/html.js";
import { Sample } from "./metrics.js";

const EVERY_MS = 2000;
const KEPT = 300; // ten minutes

/** @returns {{samples: Sample[], trouble: string}} samples: the latest last; trouble: why there is no newer one */
export function useHistory() {
  const [state, setState] = useState({ samples: [], trouble: "" });

  useEffect(() => {
    const gone = new AbortController();
    let timer = 0;
    const look = async () => {
      timer = 0;
      if (document.hidden) return; // visible() goes on
      try {
        const response = await ask("metrics", { wait: false, signal: gone.signal, headers: { Accept: "text/plain" } });
        const sample = new Sample(Date.now() / 1000, await response.text());
        setState(({ samples }) => ({ samples: [...samples.slice(1 - KEPT), sample], trouble: "" }));
      } catch (error) {
        if (gone.signal.aborted) return;
        setState(({ samples }) => ({ samples, trouble: error.message }));
      }
      if (!gone.signal.aborted) timer = setTimeout(look, EVERY_MS);
    };
    const visible = () => {
      if (document.hidden) {
        clearTimeout(timer);
        timer = 0;
      } else if (!timer) look();
    };
    document.addEventListener("visibilitychange", visible);
    look();
    return () => {
      gone.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", visible);
    };
  }, []);
  return state;
}
