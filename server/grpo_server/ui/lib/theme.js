/** Light, dark, or as the system is. Kept in this browser; nothing else is. */
import { createStore } from "./store.js";

const CHOICES = ["system", "light", "dark"];
const NAME = "grpo-refserver.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export const theme = createStore(remembered());
/** Whether colours are the dark ones now: canvases are drawn anew when it changes. */
export const dark = createStore(isDark());

function remembered() {
  try {
    const said = localStorage.getItem(NAME);
    return CHOICES.includes(said) ? said : "system";
  } catch {
    return "system"; // a browser that stores nothing
  }
}

function isDark() {
  return theme.get() === "system" ? system.matches : theme.get() === "dark";
}

function apply() {
  const chosen = theme.get();
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  dark.set(isDark());
}

export function nextTheme() {
  theme.set(CHOICES[(CHOICES.indexOf(theme.get()) + 1) % CHOICES.length]);
  try {
    localStorage.setItem(NAME, theme.get());
  } catch {
    // it holds for this page
  }
  apply();
}

export function startTheme() {
  apply();
  system.addEventListener("change", apply);
}

/** What a colour variable of base.css, such as "--ink", is now: for a canvas, which knows no variables. */
export function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
