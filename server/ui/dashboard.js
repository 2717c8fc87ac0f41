/** The figures of the newest answer, and how its tokens spread over the layers. */

import { formatShare, formatSpeed, formatTimes, nameLayer } from "./words.js";

export class Dashboard {
  #speedUpNote = document.getElementById("speed-up-label");
  #depths = document.getElementById("depths");
  #legend = document.getElementById("legend");
  #layers = null;

  /** A model's exits: the legend names them before there are tokens. */
  setLayers(layers) {
    this.#layers = layers;
    this.show(null, null);
  }

  /**
   * @param {import("./figures.js").Figures | null} figures of the answer; null for none.
   * @param {{factor: number, note: string} | null} speedUp against plain decoding.
   */
  show(figures, speedUp) {
    put("speed", formatSpeed(figures?.speed ?? null));
    put("acceptance", formatShare(figures?.acceptanceRate ?? null));
    put("acceptance-length", figures?.acceptanceLength?.toFixed(2) ?? "–");
    put("speed-up", formatTimes(speedUp?.factor ?? null));
    this.#speedUpNote.textContent = speedUp?.note ?? "speed-up";
    if (this.#layers) this.#showLayers(figures);
  }

  #showLayers(figures) {
    const layers = new Set([...this.#layers.exits, ...(figures?.byLayer.keys() ?? [])]);
    const entries = [...layers].sort((a, b) => a - b).map((layer) => ({
      look: `early ${this.#layers.look(layer)}`,
      name: nameLayer(layer),
      count: figures?.byLayer.get(layer) ?? 0,
    }));
    entries.push({ look: "full", name: `all ${this.#layers.numLayers} layers`, count: figures?.numFull ?? 0 });
    entries.push({ look: "rejected", name: "rejected", count: figures?.numRejected ?? 0 });
    this.#legend.replaceChildren(...entries.map(legendItem));
    this.#depths.replaceChildren(...entries.slice(0, -1).map(bar));
  }
}

function put(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}

function legendItem({ look, name, count }) {
  const item = document.createElement("li");
  const label = document.createElement(look === "rejected" ? "del" : "span");
  label.className = look === "rejected" ? "" : `token ${look}`;
  label.textContent = name;
  const number = document.createElement("b");
  number.textContent = count;
  item.append(label, " ", number);
  return item;
}

function bar({ look, count }) {
  const element = document.createElement("i");
  element.className = look;
  element.style.flexGrow = count;
  return element;
}
