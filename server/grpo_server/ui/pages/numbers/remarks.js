/** What is worth noticing in an answer, in a sentence each: read off its figures, for what happened in this row. */

const TYPES = { float16: "fp16", bfloat16: "bf16", float32: "fp32" };

/** @returns {string[]} */
export function remarks(answer) {
  const { naive, stable, distributions, target } = answer;
  if (answer.logits.every((x) => x === "-inf")) {
    return ["Every token is masked. The row has no distribution, and every form says so: nan, here and in no other row."];
  }
  const inTypes = (found) => Object.keys(TYPES).filter(found).map((type) => TYPES[type]).join(", ");
  const says = [];
  const overflow = inTypes((type) => naive[type].terms?.includes("inf"));
  if (overflow) says.push(`Naive, ${overflow}: a term or the sum overflows to inf, and inf / inf is nan. Subtracting the maximum leaves exp nothing above 0.`);
  const underflow = inTypes((type) => naive[type].total === 0);
  if (underflow) says.push(`Naive, ${underflow}: every term underflows to 0, and 0 / 0 is nan. With the maximum subtracted one term is exactly 1.`);
  const lost = inTypes((type) => naive[type].logprobs.some((x, i) => x === "-inf" && typeof stable[type].logprobs[i] === "number"));
  if (lost && answer.normalizer in { softmax: 1, stablemax: 1 }) says.push(`Naive, ${lost}: a probability rounds to 0 and its logarithm is -inf. Stable, log p is x − max − log of the sum, and finite.`);
  const off = inTypes((type) => !overflow && !underflow && typeof total(naive[type].p) === "number" && Math.abs(total(naive[type].p) - 1) > 0.01);
  if (off) says.push(`Naive, ${off}: the probabilities do not sum to 1. Without the maximum subtracted the threshold cancels.`);
  if (target !== null && stable.float32.loss === 0 && distributions[answer.normalizer].loss > 0) {
    says.push(`Stable, fp32: loss and gradient are exactly 0, since the sum rounds to the target's own term. The loss is ${distributions[answer.normalizer].loss}: softmax collapse. The server leaves the target out of the sum.`);
  }
  return says;
}

function total(p) {
  return p.every((x) => typeof x === "number") ? p.reduce((sum, x) => sum + x, 0) : null;
}
