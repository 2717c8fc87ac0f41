/**
 * How an exit layer looks: one class per layer, by its place among the model's exits. Layer 0 is
 * where nothing was computed: the token was looked up in the text.
 */

const NUM_LOOKS = 8; // .exit-0 … .exit-7 in style.css: a colour and a kind of underline each

export class Layers {
  #exits;

  /** @param {{exit_layers: number[], num_layers: number}} card of the model. */
  constructor(card) {
    const layers = card.has_lookup ? [...card.exit_layers, 0] : [...card.exit_layers];
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
