/** The page: connects the server's answers with what people see and press. */

import { Api, ApiError } from "./api.js";
import { Dashboard } from "./dashboard.js";
import { Key } from "./key.js";
import { Layers } from "./layers.js";
import { persist, sleep } from "./patience.js";
import { Settings } from "./settings.js";
import { TokenCard } from "./token-card.js";
import { Turn } from "./turn.js";
import { count, formatSpeed } from "./words.js";

const RUNS = {
  early: [{ label: "Early exits", isEarly: true }],
  plain: [{ label: "Plain", isEarly: false }],
};
RUNS.compare = [...RUNS.early, ...RUNS.plain]; // one after the other: together they would slow each other

const SPEED_UP_EVERY_S = 1;

const element = (id) => document.getElementById(id);

class Page {
  #key = new Key(document.baseURI);
  #api = new Api(document.baseURI, this.#key);
  #settings = new Settings();
  #dashboard = new Dashboard();
  #model = null; // the model's card
  #layers = null;
  #turns = [];
  #running = null; // AbortController of what is on its way
  #plainSpeed = null; // tokens per second of the last plain answer
  #serverSpeedUp = null; // by the server's own measure
  #card = new TokenCard(element("conversation"), (span) => this.#paneOf(span));

  start() {
    element("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask(element("question").value.trim());
    });
    element("question").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#ask(element("question").value.trim());
    });
    document.addEventListener("keydown", (event) => this.#onEscape(event));
    element("stop").addEventListener("click", () => this.#stop());
    element("clear").addEventListener("click", () => this.#clear());
    for (const button of document.querySelectorAll("#suggestions button")) {
      button.addEventListener("click", () => this.#ask(button.textContent));
    }
    this.#connect();
  }

  /** Find out what is served; goes on trying while there is nobody or the model loads. */
  async #connect() {
    const notice = element("notice");
    const retry = notice.querySelector("button");
    const wait = (error, seconds) => {
      notice.querySelector("span").textContent = error.message;
      notice.hidden = false;
      retry.hidden = error.isLoading;
      return Promise.race([
        sleep(seconds),
        new Promise((resolve) => retry.addEventListener("click", resolve, { once: true })),
      ]);
    };
    this.#model = await persist(() => this.#api.model(), {
      wait,
      isWorthWaiting: () => true,
      askKey: async () => {
        if (!(await this.#key.ask())) await wait(new ApiError("This server asks for a key."), 1e6);
        return true;
      },
    });
    notice.hidden = true;
    this.#layers = new Layers(this.#model.early_exit);
    element("model").textContent = describeModel(this.#model);
    this.#settings.adapt(this.#model);
    this.#dashboard.setLayers(this.#layers);
    element("send").disabled = false;
  }

  #ask(question) {
    if (!question || this.#running || !this.#model || !this.#settings.check()) return;
    element("question").value = "";
    element("welcome").hidden = true;
    const turn = new Turn(question, (again) => this.#retry(again));
    this.#turns.at(-1)?.element.classList.add("is-past");
    this.#turns.push(turn);
    element("conversation").append(turn.element);
    this.#run(turn);
  }

  #retry(turn) {
    if (this.#running || !this.#settings.check()) return;
    element("question").focus();
    this.#run(turn);
  }

  /** Answer a turn, in as many ways as the mode asks for. */
  async #run(turn) {
    const runs = RUNS[this.#settings.mode];
    const body = {
      model: this.#model.id,
      messages: this.#messages(turn),
      ...this.#settings.sampling(),
    };
    turn.begin(runs, this.#layers);
    this.#setRunning(new AbortController());
    this.#scrollDown(true);
    this.#watchSpeedUp(turn);
    try {
      for (const [index, { isEarly }] of runs.entries()) {
        const options = isEarly ? this.#settings.earlyExit() : {};
        const early_exit = { ...options, enabled: isEarly, return_trace: true };
        await this.#fill(turn, turn.panes[index], { ...body, early_exit });
        if (!isEarly) this.#plainSpeed = turn.panes[index].figures.speed ?? this.#plainSpeed;
      }
    } catch (error) {
      this.#failed(turn, error);
    }
    this.#setRunning(null);
    turn.end();
    this.#showFigures(turn, turn.panes.find((pane) => pane.figures.numTokens) ?? turn.panes[0]);
    this.#scrollDown();
  }

  /** Stream one answer into a pane. */
  async #fill(turn, pane, body) {
    const { signal } = this.#running;
    await persist(
      async () => {
        pane.begin();
        for await (const chunk of this.#api.chat(body, signal)) {
          pane.add(chunk);
          this.#showFigures(turn, pane);
          this.#scrollDown();
        }
      },
      {
        wait: (error, seconds) => {
          pane.wait(`${error.message} Trying again …`);
          return sleep(seconds, signal);
        },
        isWorthWaiting: (error) => error.isLoading,
        askKey: () => this.#key.ask(),
      },
    );
    pane.complete();
    const { numTokens, speed } = pane.figures;
    announce(`${pane.label}: ${count(numTokens, "token")}, ${formatSpeed(speed)} tokens per second.`);
  }

  #failed(turn, error) {
    const isStopped = this.#running.signal.aborted;
    const pane = turn.panes.find((each) => each.isRunning); // those after it have not begun
    if (isStopped) {
      pane.stop();
      announce("Stopped.");
    } else {
      pane.fail(error instanceof ApiError ? error.message : `The page failed: ${error.message}`);
      if (!(error instanceof ApiError)) console.error(error);
      if (error.code === "model_not_found") this.#connect(); // the server serves another one by now
    }
  }

  /** The conversation up to a turn's question. */
  #messages(turn) {
    const messages = [];
    if (this.#settings.system) messages.push({ role: "system", content: this.#settings.system });
    for (const past of this.#turns.slice(0, this.#turns.indexOf(turn))) {
      if (past.answer === null) continue;
      messages.push({ role: "user", content: past.question });
      messages.push({ role: "assistant", content: past.answer });
    }
    return [...messages, { role: "user", content: turn.question }];
  }

  #showFigures(turn, pane) {
    this.#dashboard.show(pane.figures, this.#speedUp(turn, pane));
  }

  /** Against plain decoding: of the same prompt, else of an earlier one, else as the server says. */
  #speedUp(turn, pane) {
    if (turn.speedUp !== null) return { factor: turn.speedUp, note: "speed-up" };
    const { speed, numEarly } = pane.figures;
    if (pane.label === RUNS.plain[0].label || !speed) return null;
    if (this.#plainSpeed) return { factor: speed / this.#plainSpeed, note: "× last plain answer" };
    if (!this.#serverSpeedUp || !numEarly) return null;
    return { factor: this.#serverSpeedUp, note: "speed-up (server’s)" };
  }

  /** Ask for the server's own measure while an answer is on its way. */
  async #watchSpeedUp(turn) {
    const { signal } = this.#running;
    while (this.#running?.signal === signal && !this.#plainSpeed) {
      await sleep(SPEED_UP_EVERY_S);
      this.#serverSpeedUp = await this.#api.speedUp();
      const pane = turn.panes.find((each) => each.isRunning);
      if (pane) this.#showFigures(turn, pane);
    }
  }

  #setRunning(controller) {
    this.#running = controller;
    const isRunning = controller !== null;
    const hadFocus = ["send", "stop"].includes(document.activeElement?.id);
    element("send").hidden = isRunning;
    element("stop").hidden = !isRunning;
    element("clear").disabled = isRunning;
    if (hadFocus) element(isRunning ? "stop" : "question").focus();
    document.body.classList.toggle("is-running", isRunning);
  }

  #onEscape(event) {
    if (event.key !== "Escape" || element("key-dialog").open) return;
    if (this.#card.isShown) this.#card.hide();
    else this.#stop();
  }

  #stop() {
    this.#running?.abort();
  }

  #clear() {
    for (const turn of this.#turns) turn.element.remove();
    this.#turns = [];
    this.#card.hide();
    element("welcome").hidden = false;
    this.#dashboard.show(null, null);
    element("question").focus();
  }

  #paneOf(span) {
    const panes = this.#turns.flatMap((turn) => turn.panes);
    return panes.find((pane) => pane.element.contains(span));
  }

  /** Follow the answer, unless the reader has scrolled up. */
  #scrollDown(isForced = false) {
    const box = element("conversation");
    const distance = box.scrollHeight - box.scrollTop - box.clientHeight;
    if (isForced || distance < 120) box.scrollTop = box.scrollHeight;
  }
}

function describeModel(card) {
  const { exit_layers: exits, num_layers: numLayers } = card.early_exit;
  const lookup = card.early_exit.has_lookup ? "looked-up drafts" : "decodes plainly";
  const where = exits.length ? `exits at ${exits.join(", ")}` : `no exits: ${lookup}`;
  return `${card.id} · ${numLayers} layers, ${where}`;
}

function announce(text) {
  element("announcer").textContent = text;
}

new Page().start();
