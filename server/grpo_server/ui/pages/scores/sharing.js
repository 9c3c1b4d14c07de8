/** What was typed, in an address: deflated, base64url. It stands in the fragment, which no server is sent. */

const LONGEST = 8192; // characters: some programs cut longer addresses

/** @returns {Promise<string | null>} null when it does not fit */
export async function packed(value) {
  const bytes = await through(new CompressionStream("deflate-raw"), new TextEncoder().encode(JSON.stringify(value)));
  const code = btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return code.length > LONGEST ? null : code;
}

/** @returns {Promise<Object | null>} null when it is none */
export async function unpacked(code) {
  try {
    const bytes = Uint8Array.from(atob(code.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const value = JSON.parse(new TextDecoder().decode(await through(new DecompressionStream("deflate-raw"), bytes)));
    return known(value);
  } catch {
    return null;
  }
}

/** An address may come from anybody: what is not of the form's own kind is left out. */
function known({ kind, prompt, completions, temperature, normalizer }) {
  if (!["text", "chat", "ids"].includes(kind) || typeof prompt !== "string") return null;
  if (!Array.isArray(completions) || !completions.every((text) => typeof text === "string")) return null;
  return { kind, prompt, completions, temperature: Number(temperature) || 1, normalizer: normalizer === "stablemax" ? normalizer : "softmax" };
}

async function through(stream, bytes) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}
