/**
 * How an exit layer looks: one class per layer, by its place among the model's exits. Tokens that
 * were looked up in the text have a layer of their own, before the first.
 */

/** The exit layer of drafts that no head made. */
export const LOOKED_UP = -1;

const NUM_LOOKS = 8; // .exit-0 … .exit-7 in style.css: a colour and a kind of underline each

export class Layers {
  #exits;

  /** @param {{exit_layers: number[], num_layers: number}} card of the model. */
  constructor(card) {
    const layers = card.has_lookup ? [...card.exit_layers, LOOKED_UP] : [...card.exit_layers];
    this.#exits = layers.sort((a, b) => a - b);
    this.numLayers = card.num_layers;
  }

  get exits() {
    return this.#exits;
  }

  /** The class of an exit layer. */
  look(layer) {
    if (!this.#exits.includes(layer)) this.#exits = [...this.#exits, layer];
    return `exit-${this.#exits.indexOf(layer) % NUM_LOOKS}`;
  }
}
