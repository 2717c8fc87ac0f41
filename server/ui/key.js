/** The API key: kept in this tab only, asked for when the server wants one. */

export class Key {
  #name; // several servers may share an origin, each behind its own path

  constructor(base) {
    this.#name = `adadecode-api-key:${new URL(base).pathname}`;
  }

  get value() {
    return sessionStorage.getItem(this.#name);
  }

  /**
   * Ask the person.
   * @returns {Promise<boolean>} false when they closed the dialog instead.
   */
  ask() {
    const dialog = document.getElementById("key-dialog");
    const input = document.getElementById("key");
    const form = dialog.querySelector("form");
    document.getElementById("key-refused").hidden = this.value === null;
    input.value = "";
    return new Promise((resolve) => {
      const submit = (event) => {
        event.preventDefault();
        sessionStorage.setItem(this.#name, input.value.trim());
        dialog.close("given");
      };
      const close = () => {
        form.removeEventListener("submit", submit);
        resolve(dialog.returnValue === "given");
      };
      form.addEventListener("submit", submit);
      dialog.addEventListener("close", close, { once: true });
      dialog.returnValue = "";
      dialog.showModal();
    });
  }
}
