/** What the person chose. An empty field leaves the choice to the server. */

const DEFAULT_MAX_TOKENS = 512;
const OPENAI_TEMPERATURE = 1; // small models ramble at it, so that the page asks for less
const SEED_RANGE = 2 ** 31;

export class Settings {
  #form = document.getElementById("settings");
  #toggle = document.getElementById("toggle-settings");
  #isAdapted = false;

  constructor() {
    this.#toggle.addEventListener("click", () => this.show(this.#form.hidden));
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    for (const what of ["exits", "drafts"]) {
      const box = document.getElementById(`show-${what}`);
      const apply = () => document.body.classList.toggle(`hide-${what}`, !box.checked);
      box.addEventListener("change", apply);
      apply();
    }
  }

  show(isShown) {
    this.#form.hidden = !isShown;
    this.#toggle.setAttribute("aria-expanded", String(isShown));
    if (isShown) document.getElementById("system").focus();
  }

  /** Fit the defaults to the model. */
  adapt(card) {
    const longest = document.getElementById("max-tokens");
    const temperature = document.getElementById("temperature");
    const own = card.sampling_defaults.temperature;
    if (!this.#isAdapted) {
      longest.value = Math.min(DEFAULT_MAX_TOKENS, card.max_model_len >> 1);
      // A model that has a temperature of its own is asked at that one.
      if (own !== OPENAI_TEMPERATURE && temperature.value === temperature.defaultValue) temperature.value = "";
    }
    this.#isAdapted = true;
    temperature.placeholder = `server’s: ${own}`;
    const drafts = document.getElementById("max-drafts");
    drafts.placeholder = String(card.early_exit.max_draft_tokens);
  }

  /** Whether every field has a value that makes sense; shows the first that has not. */
  check() {
    if (this.#form.checkValidity()) return true;
    this.show(true);
    return this.#form.reportValidity();
  }

  /** "early", "plain" or "compare". */
  get mode() {
    return document.querySelector("#mode input:checked").value;
  }

  get system() {
    return document.getElementById("system").value.trim();
  }

  /** The request's fields besides the messages; always with a seed, so that it can be repeated. */
  sampling() {
    return withoutEmpty({
      temperature: number("temperature"),
      max_tokens: number("max-tokens"),
      seed: number("seed") ?? Math.floor(Math.random() * SEED_RANGE),
    });
  }

  earlyExit() {
    return withoutEmpty({
      threshold: number("threshold"),
      max_draft_tokens: number("max-drafts"),
    });
  }
}

function number(id) {
  const { value } = document.getElementById(id);
  return value === "" ? null : Number(value);
}

function withoutEmpty(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
}
