/** Preact and htm, bound together: what every component here imports. */
import htm from "../vendor/htm.mjs";
import { h } from "../vendor/preact.mjs";

export { Fragment, h, render } from "../vendor/preact.mjs";
export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../vendor/hooks.mjs";

export const html = htm.bind(h);
