/**
 * Which page is shown, and its state. A page is a path, its state the fragment behind it, which no server ever sees: a link
 * shares both. Following a link between pages loads nothing anew, so that the key is not forgotten.
 */
import { createStore, useStore } from "./store.js";

/** Where the server is published: `/`, or the prefix of a proxy with a slash at its end. */
export const ROOT = new URL("../../../", import.meta.url);

const PATHS = { "ui": "scores", "ui/": "scores", "ui/softmax": "numbers", "ui/runs": "runs", "ui/server": "server" };

export const route = createStore(here());

function here() {
  const path = location.pathname.slice(ROOT.pathname.length);
  return { page: PATHS[path] ?? "scores", state: Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
}

/** The fragment of a state; what is null, undefined or empty is left out. */
export function fragment(state) {
  const said = Object.entries(state).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return said.length ? `#${new URLSearchParams(said.map(([name, value]) => [name, String(value)]))}` : "";
}

/** The address of a page in a state, such as `address("ui/softmax", {logits: "1,2,3"})`. */
export function address(path, state = {}) {
  return new URL(path, ROOT).pathname + fragment(state);
}

/**
 * Change some of this page's state.
 * @param {Object} changes  name to value; null removes
 * @param {{push?: boolean}} how  push: a step that the back button takes back
 */
export function change(changes, { push = false } = {}) {
  const state = { ...route.get().state, ...changes };
  history[push ? "pushState" : "replaceState"](null, "", location.pathname + fragment(state));
  route.set(here());
}

/** Go to an address of this server. */
export function go(to) {
  history.pushState(null, "", to);
  route.set(here());
  scrollTo(0, 0);
}

/** The fragment's values, all of them strings. */
export function useFragment() {
  return useStore(route).state;
}

/** Take over the back button, and every link to a page of ours. */
export function follow() {
  const arrive = () => route.set(here());
  addEventListener("popstate", arrive);
  addEventListener("hashchange", arrive);
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
    if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const to = new URL(link.href);
    const ours = to.origin === ROOT.origin && to.pathname.slice(ROOT.pathname.length) in PATHS;
    if (!ours || link.target || link.download) return;
    if (to.pathname === location.pathname && !to.hash && link.hash) return;
    event.preventDefault();
    go(to.pathname + to.hash);
  });
}
