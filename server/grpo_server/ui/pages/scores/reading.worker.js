/** Reads a file beside the page: text to columns, whose memory is handed over and not copied. */
import { LineError, readLines } from "./records.js";

onmessage = ({ data: { text, name, mapping } }) => {
  try {
    const samples = readLines(text, name, mapping, (share) => postMessage({ share }));
    const buffers = ["starts", "group", "ids", "r", "t", "entropy", "reward"].map((column) => samples[column].buffer);
    postMessage({ samples }, { transfer: buffers });
  } catch (error) {
    if (!(error instanceof LineError)) throw error;
    postMessage({ refused: error.message, fields: error.fields });
  }
};
