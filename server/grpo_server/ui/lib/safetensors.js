/** safetensors, read and written: a JSON header with its length before it, then the tensors' bytes, little-endian. */

const KINDS = { F32: Float32Array, I32: Int32Array, U8: Uint8Array };

/**
 * @param {ArrayBuffer} buffer
 * @returns {{metadata: Object<string, string>, tensors: Object<string, {shape: number[], data: Float32Array | Int32Array | Uint8Array}>}}
 */
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata = {}, ...described } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(described)) {
    const Kind = KINDS[dtype];
    if (!Kind) throw new TypeError(`the tensor ${name} is ${dtype}; known here: ${Object.keys(KINDS).join(", ")}`);
    tensors[name] = { shape, data: new Kind(buffer.slice(8 + length + start, 8 + length + end)) };
  }
  return { metadata, tensors };
}

/**
 * @param {Object<string, Int32Array | Float32Array | Uint8Array>} arrays  one dimension each, or two with `shapes`
 * @param {Object<string, string>} metadata
 * @param {Object<string, number[]>} shapes
 * @returns {Blob}
 */
export function writeTensors(arrays, metadata, shapes = {}) {
  const names = Object.keys(arrays).sort((a, b) => arrays[b].BYTES_PER_ELEMENT - arrays[a].BYTES_PER_ELEMENT);
  const header = { __metadata__: metadata };
  let at = 0;
  for (const name of names) {
    const data = arrays[name];
    const dtype = Object.keys(KINDS).find((kind) => data instanceof KINDS[kind]);
    header[name] = { dtype, shape: shapes[name] ?? [data.length], data_offsets: [at, at + data.byteLength] };
    at += data.byteLength;
  }
  let text = new TextEncoder().encode(JSON.stringify(header));
  if (text.length % 8) text = new Uint8Array([...text, ...Array(8 - (text.length % 8)).fill(0x20)]);
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(text.length), true);
  return new Blob([length.buffer, text, ...names.map((name) => arrays[name])]);
}
