/** The ways in: type, drop, or a run that the server shows. */
import { html, useEffect, useRef, useState } from "../../lib/html.js";
import { change, useFragment } from "../../lib/route.js";
import { useStore } from "../../lib/store.js";
import { listRuns, openFile, openTyped, trouble } from "./model.js";
import { NAMES } from "./records.js";
import { packed, unpacked } from "./sharing.js";
import { Which } from "./which.js";

const DEMO = { kind: "text", prompt: "The capital of France is", completions: [" Paris.", " London.", " a city on the Seine.", " sipaR"], temperature: 1, normalizer: "softmax" };
const EMPTY = { kind: "text", prompt: "", completions: [""], temperature: 1, normalizer: "softmax" };
const HINTS = {
  text: "The prompt is tokenized as the model does it by default, completions without special tokens.",
  chat: "Messages as JSON, for the model's own template; each completion is the answer as text.",
  ids: "Token ids, with commas or blanks between them.",
};
const EXAMPLES = { text: "The capital of France is", chat: '[{"role": "user", "content": "2 + 2?"}]', ids: "464, 3139, 286" };

export function Sources({ onClose }) {
  const [runs, setRuns] = useState([]);
  useEffect(() => {
    listRuns().then(setRuns);
  }, []);
  return html`<section class="sources" aria-label="What to look at">
    <${Typed} />
    <div class="stack">
      <${Dropped} />
      ${runs.length ? html`<${Runs} runs=${runs} />` : null}
      ${onClose ? html`<button type="button" onClick=${onClose}>Back to what is open</button>` : null}
    </div>
  </section>`;
}

function Typed() {
  const { text } = useFragment();
  const [typed, setTyped] = useState(EMPTY);
  const [mistake, setMistake] = useState("");
  const [link, setLink] = useState("");
  const refused = useStore(trouble);
  useEffect(() => {
    if (text) unpacked(text).then((shared) => shared && setTyped({ ...EMPTY, ...shared }));
  }, [text]);
  const set = (changes) => setTyped({ ...typed, ...changes });
  const send = (what) => {
    setTyped(what);
    try {
      setMistake("");
      openTyped(recordOf(what));
    } catch (error) {
      setMistake(error.message);
    }
  };
  const share = async () => {
    const code = await packed(typed);
    if (!code) return setLink("too long for an address: save a bundle instead");
    change({ text: code });
    return setLink("The address of this page now holds the text.");
  };
  const labels = typed.kind === "chat" ? "Messages" : typed.kind === "ids" ? "Prompt ids" : "Prompt";
  return html`<form class="panel typed" onSubmit=${(event) => (event.preventDefault(), send(typed))}>
    <h1>Score a prompt</h1>
    <div class="bar">
      <label>Given as
        <select value=${typed.kind} onChange=${(event) => set({ kind: event.target.value })}>
          <option value="text">text</option><option value="chat">chat messages</option><option value="ids">token ids</option>
        </select>
      </label>
      <label>Temperature <input type="number" min="0.01" step="any" value=${typed.temperature} onInput=${(event) => set({ temperature: event.target.value })} /></label>
      <label>Normalizer
        <select value=${typed.normalizer} onChange=${(event) => set({ normalizer: event.target.value })}><option>softmax</option><option>stablemax</option></select>
      </label>
      <${Which} />
    </div>
    <label class="field">${labels}
      <textarea rows="4" spellcheck=${false} value=${typed.prompt} placeholder=${EXAMPLES[typed.kind]} onInput=${(event) => set({ prompt: event.target.value })}></textarea>
    </label>
    ${typed.completions.map((completion, g) => html`<label class="field" key=${g}>Completion ${g + 1}
      <textarea rows="2" spellcheck=${false} value=${completion} onInput=${(event) => set({ completions: typed.completions.with(g, event.target.value) })}></textarea>
    </label>`)}
    <p class="muted small">${HINTS[typed.kind]}</p>
    ${mistake || refused?.param ? html`<p class="wrong" role="alert">${mistake || `${refused.param}: ${refused.message}`}</p>` : null}
    <div class="bar">
      <button class="main">Score</button>
      <button type="button" onClick=${() => set({ completions: [...typed.completions, ""] })}>Another completion</button>
      <button type="button" onClick=${() => send(DEMO)}>Try the demo sentence</button>
      <button type="button" onClick=${share} disabled=${!typed.prompt}>Share with text</button>
      <span role="status" class="muted small">${link}</span>
    </div>
  </form>`;
}

/** Raises Error with a sentence. */
function recordOf({ kind, prompt, completions, temperature, normalizer }) {
  const about = { temperature: Number(temperature), normalizer };
  if (!(about.temperature > 0)) throw new Error("The temperature must be above 0.");
  if (kind === "text") return { ...about, prompt, completions };
  if (kind === "ids") return { ...about, prompt_ids: idsOf(prompt, "The prompt"), completion_ids: completions.map((text, g) => idsOf(text, `Completion ${g + 1}`)) };
  let messages;
  try {
    messages = JSON.parse(prompt);
  } catch (error) {
    throw new Error(`The messages are not valid JSON: ${error.message}`, { cause: error });
  }
  if (!Array.isArray(messages)) throw new Error("The messages must be a JSON list of objects with role and content.");
  return { ...about, messages, completions };
}

function idsOf(text, what) {
  const ids = text.replace(/[[\],]/g, " ").trim().split(/\s+/).filter(Boolean).map(Number);
  if (ids.some((id) => !Number.isInteger(id) || id < 0)) throw new Error(`${what} holds something that is no token id.`);
  return ids;
}

function Dropped() {
  const input = useRef(null);
  const [over, setOver] = useState(false);
  const [file, setFile] = useState(null);
  const refused = useStore(trouble);
  const open = (chosen) => {
    if (!chosen) return;
    setFile(chosen);
    openFile(chosen);
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    open(event.dataTransfer.files[0]);
  };
  return html`<div class=${`panel drop${over ? " over" : ""}`} onDragOver=${(event) => (event.preventDefault(), setOver(true))} onDragLeave=${() => setOver(false)} onDrop=${drop}>
    <h2>Open a file</h2>
    <p>Drop it here: <code>samples.jsonl</code> of a run, rollouts or scores of <code>grpo-client</code>, another trainer's lines of JSON, or a bundle; plain or gzip.</p>
    <button type="button" onClick=${() => input.current.click()}>Choose a file</button>
    <input ref=${input} type="file" class="unseen" tabindex="-1" aria-label="File" accept=".jsonl,.json,.gz,.ndjson" onChange=${(event) => open(event.target.files[0])} />
    ${refused?.fields && file ? html`<${Mapping} fields=${refused.fields} onDone=${(mapping) => openFile(file, mapping)} />` : null}
  </div>`;
}

/** Which field of the file is what. */
function Mapping({ fields, onDone }) {
  const [mapping, setMapping] = useState({});
  const names = { completions: "completion, text", completion_ids: "completion, ids", prompt: "prompt, text", prompt_ids: "prompt, ids", policy_logprobs: "policy log-probs", ref_logprobs: "reference log-probs", rewards: "reward", step: "step" };
  return html`<form class="mapping" onSubmit=${(event) => (event.preventDefault(), onDone(mapping))} aria-label="Fields of the file">
    <p>Its lines have the fields <code>${fields.join(", ")}</code>. Which is what?</p>
    ${Object.keys(names).filter((name) => name in NAMES).map((name) => html`<label key=${name}>${names[name]}
      <select onChange=${(event) => setMapping({ ...mapping, [name]: event.target.value || undefined })}>
        <option value="">–</option>${fields.map((field) => html`<option key=${field}>${field}</option>`)}
      </select></label>`)}
    <button class="main">Read it so</button>
  </form>`;
}

function Runs({ runs }) {
  return html`<div class="panel">
    <h2>Open a run</h2>
    <ul class="plain-list">
      ${runs.map(({ name }) => html`<li key=${name}><button type="button" onClick=${() => change({ run: name, text: null, seq: null, tok: null, step: null }, { push: true })}>${name}</button></li>`)}
    </ul>
  </div>`;
}
