/** A text with a button that copies it; where a page may not (http on another machine), it is selected instead. */
import { html, useRef, useState } from "../../lib/html.js";

export function Copied({ text, of = "" }) {
  const code = useRef(null);
  const [done, setDone] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone("copied");
    } catch {
      getSelection().selectAllChildren(code.current);
      setDone("selected");
    }
  };
  return html`<code ref=${code}>${text}</code> <button type="button" onClick=${copy}>copy<span class="unseen"> the fingerprint${of}</span></button> <span role="status" class="muted small">${done}</span>`;
}
