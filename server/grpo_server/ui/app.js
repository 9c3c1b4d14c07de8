/** The frame: header with pages and status, the form for a key, what is waited for, and the page itself. */
import { giveKey, keyWanted, waiting } from "./lib/api.js";
import { short } from "./lib/format.js";
import { html, render, useEffect, useRef, useState } from "./lib/html.js";
import { KeyboardHelp, useKeys } from "./lib/keyboard.js";
import { startPalette } from "./lib/palette.js";
import { lookUpReference, reference } from "./lib/reference.js";
import { address, follow, route } from "./lib/route.js";
import { useStore } from "./lib/store.js";
import { nextTheme, startTheme, theme } from "./lib/theme.js";

const PAGES = {
  scores: { path: "ui", title: "Scores", load: () => import("./pages/scores.js") },
  numbers: { path: "ui/softmax", title: "Numbers", load: () => import("./pages/numbers.js") },
  runs: { path: "ui/runs", title: "Runs", load: () => import("./pages/runs.js") },
  server: { path: "ui/server", title: "Server", load: () => import("./pages/server.js") },
};

function Frame() {
  const { page } = useStore(route);
  const [help, setHelp] = useState(false);
  useKeys([{ key: "?", does: "show these keys", run: () => setHelp(true) }]);
  useEffect(() => {
    document.title = `${PAGES[page].title} · grpo-refserver`;
  }, [page]);
  return html`
    <a class="skip" href="#main" onClick=${toMain}>Skip to the page</a>
    <header>
      <strong class="brand">grpo-refserver</strong>
      <nav aria-label="Pages">
        ${Object.entries(PAGES).map(([name, { path, title }]) => html`<a key=${name} href=${address(path)} aria-current=${name === page ? "page" : undefined}>${title}</a>`)}
      </nav>
      <${Status} />
      <span class="tools">
        <${ThemeSwitch} />
        <button type="button" aria-label="Keys" title="Keys (?)" onClick=${() => setHelp(true)}>?</button>
      </span>
    </header>
    <${Key} />
    <${Waiting} />
    <main id="main" tabindex="-1" class=${`page-${page}`}><${Loaded} key=${page} page=${PAGES[page]} /></main>
    <${KeyboardHelp} open=${help} onClose=${() => setHelp(false)} />`;
}

function toMain(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

/** Who answers, or what is the matter with it. */
function Status() {
  const who = useStore(reference);
  const [trouble, setTrouble] = useState("");
  useEffect(() => {
    lookUpReference().catch((error) => setTrouble(error.message));
  }, []);
  if (!who) return html`<p class="status" role="status">${trouble || "asking who answers …"}</p>`;
  return html`<p class="status" role="status" title=${`fingerprint ${who.fingerprint}`}>
    <span>${who.model}</span> <span>${short(who.fingerprint)}</span> <span>${who.dtype} ${who.mode}</span> <span>v${who.version}</span>
  </p>`;
}

function ThemeSwitch() {
  const chosen = useStore(theme);
  const name = chosen === "system" ? "auto" : chosen;
  return html`<button type="button" onClick=${nextTheme} aria-label=${`Theme: ${name}`} title="Theme: as the system, light, dark">
    <span aria-hidden="true" class=${`half ${chosen}`}></span> ${name}
  </button>`;
}

/** Asks for the key when the server wants one. It is kept in memory alone. */
function Key() {
  const wanted = useStore(keyWanted);
  const field = useRef(null);
  useEffect(() => {
    if (wanted) field.current.focus();
  }, [wanted]);
  if (!wanted) return null;
  const given = (event) => {
    event.preventDefault();
    giveKey(field.current.value);
  };
  return html`<form class="key notice" onSubmit=${given} aria-labelledby="key-title">
    <h2 id="key-title">This server wants a key</h2>
    <p>${wanted.message}</p>
    <label>API key <input ref=${field} type="password" autocomplete="off" spellcheck=${false} required /></label>
    <button>Use it</button>
    <p class="muted">It stays in this page's memory, goes to this server alone, and is forgotten on reload.</p>
  </form>`;
}

/** A refusal that passes, counted down. */
function Waiting() {
  const what = useStore(waiting);
  const [, tick] = useState(0);
  useEffect(() => {
    if (!what) return undefined;
    const timer = setInterval(() => tick((n) => n + 1), 250);
    return () => clearInterval(timer);
  }, [what]);
  if (!what) return null;
  const left = Math.max(0, Math.ceil((what.until - Date.now()) / 1000));
  return html`<div class="notice wait"><p><span role="status">${what.message}</span> <span class="muted">Asked again in ${left} s.</span></p></div>`;
}

/** The page's module, loaded when it is first shown. */
function Loaded({ page }) {
  const [module, setModule] = useState(null);
  const [trouble, setTrouble] = useState("");
  useEffect(() => {
    let here = true;
    page.load().then(
      (loaded) => here && setModule(loaded),
      () => here && setTrouble("This page could not be loaded: the server does not answer, or has changed. Reload."),
    );
    return () => (here = false);
  }, [page]);
  if (trouble) return html`<p class="notice bad" role="alert">${trouble}</p>`;
  return module ? html`<${module.Page} />` : html`<div class="skeleton" aria-busy="true"></div>`;
}

startTheme();
startPalette();
follow();
render(html`<${Frame} />`, document.getElementById("app"));
