/** Numbers and tokens in words. */

import { LOOKED_UP } from "./layers.js";

const SEPARATOR = " · ";

export function formatSpeed(speed) {
  if (speed === null) return "–";
  return speed >= 100 ? speed.toFixed(0) : speed.toFixed(1);
}

export function formatTimes(factor) {
  return factor === null ? "–" : `${factor.toFixed(2)}×`;
}

export function formatShare(share) {
  return share === null ? "–" : `${Math.round(share * 100)} %`;
}

export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** The line below an answer. */
export function describeFigures(figures, remarks) {
  const parts = [];
  if (figures.numTokens) parts.push(count(figures.numTokens, "token"));
  if (figures.speed !== null) parts.push(`${formatSpeed(figures.speed)} tokens/s`);
  if (figures.firstTokenMs !== null) parts.push(`first after ${Math.round(figures.firstTokenMs)} ms`);
  if (figures.numDrafts) {
    parts.push(`${formatShare(figures.acceptanceRate)} of ${count(figures.numDrafts, "draft")} accepted`);
  }
  parts.push(...remarks.filter(Boolean));
  return parts.join(SEPARATOR);
}

/** One token, as its card says it. */
export function describeToken(token, numLayers) {
  const where = token.confidence === null
    ? `ran through all ${numLayers} layers`
    : token.exit_layer === LOOKED_UP
      ? `looked up in the text, ${formatShare(token.confidence)} sure`
      : `left at layer ${token.exit_layer} of ${numLayers}, ${formatShare(token.confidence)} sure`;
  const rejected = token.rejected.map((draft) => `${quote(draft.token)} (${nameLayer(draft.exit_layer)})`);
  const replaced = rejected.length ? `; replaced ${rejected.join(" ")}` : "";
  return `${quote(token.token)} ${where}${replaced}`;
}

/** An exit layer, by name. */
export function nameLayer(layer) {
  return layer === LOOKED_UP ? "looked up" : `layer ${layer}`;
}

function quote(text) {
  return `“${text.replaceAll("\n", "⏎")}”`;
}
