/** safetensors, read: a JSON header with its length before it, then the tensors' bytes, little-endian. */

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
