/** Who answers: the references that the server hosts, and the one that is asked. */
import { ask } from "./api.js";
import { createStore } from "./store.js";

/** All of them, the one that answers who names none first. */
export const references = createStore([]);
/** The one that is asked. */
export const reference = createStore(null);
/** The name by which it is asked; null: none is named. */
export const which = createStore(null);

export async function lookUpReference() {
  references.set((await (await ask("v1/references")).json()).references);
  choose(which.get());
  return reference.get();
}

/** Ask this one from now on; null: the one that answers who names none. */
export function choose(name) {
  which.set(name);
  const all = references.get();
  const found = name === null ? all[0] : all.find(({ model }) => model === name);
  if (found) reference.set(found);
}

/** What a request says of it. */
export const named = () => (which.get() === null ? {} : { model: which.get() });
