/** Who answers: the reference that the server hosts now. */
import { ask } from "./api.js";
import { createStore } from "./store.js";

export const reference = createStore(null);

export async function lookUpReference() {
  reference.set(await (await ask("v1/reference")).json());
  return reference.get();
}
