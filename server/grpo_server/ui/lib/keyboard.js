/** Keys of a page, and the list of them that `?` shows. None acts inside a field. */
import { html, useEffect, useRef } from "./html.js";
import { createStore, useStore } from "./store.js";

const bound = createStore([]);

/**
 * Bind keys while the component lives.
 * @param {{key: string, does: string, run: () => void, shown?: string}[]} bindings  key as in KeyboardEvent.key
 */
export function useKeys(bindings) {
  const latest = useRef(bindings);
  latest.current = bindings;
  useEffect(() => {
    const mine = { list: () => latest.current };
    bound.set([...bound.get(), mine]);
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || inField(event.target)) return;
      const binding = latest.current.find(({ key }) => key === event.key);
      if (!binding) return;
      event.preventDefault();
      binding.run();
    };
    document.addEventListener("keydown", pressed);
    return () => {
      document.removeEventListener("keydown", pressed);
      bound.set(bound.get().filter((other) => other !== mine));
    };
  }, []);
}

function inField(target) {
  return target instanceof Element && Boolean(target.closest("input, textarea, select, dialog, [contenteditable]"));
}

/** The dialog; `?` opens it, and the button in the header. */
export function KeyboardHelp({ open, onClose }) {
  const dialog = useRef(null);
  const groups = useStore(bound);
  useEffect(() => {
    if (open && !dialog.current.open) dialog.current.showModal();
    if (!open && dialog.current.open) dialog.current.close();
  }, [open]);
  return html`<dialog ref=${dialog} class="keys" aria-labelledby="keys-title" onClose=${onClose}>
    <h2 id="keys-title">Keys</h2>
    <dl>
      ${groups.flatMap((group) => group.list()).map(({ key, shown, does }) => html`<dt><kbd>${shown ?? key}</kbd></dt><dd>${does}</dd>`)}
    </dl>
    <button type="button" onClick=${() => dialog.current.close()}>Close</button>
  </dialog>`;
}
