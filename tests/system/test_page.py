"""The page at / in headless Chromium, used as a person would use it.

The tests are skipped where Chromium or its driver is missing (`.ci/run` tries to install them).
"""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, complaints, prefer, requested_urls, set_size
from fake_engine import EXIT_LAYER, NUM_LAYERS, FakeEngine
from live_server import fake_app, serving
from starlette.applications import Starlette
from starlette.routing import Mount

from engine.errors import EngineFailed, EngineOverloaded

By = pytest.importorskip("selenium.webdriver.common.by", reason="selenium is not installed").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

TEXT = "Blue — <b>ciel</b> \N{GRINNING FACE}, naïve."


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(TEXT)


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with serving(fake_app(engine)) as address:
        yield address


class Page:
    """The page as a person sees and uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get("about:blank")
        set_size(driver, 1200, 800)
        prefer(driver)
        complaints(driver)
        requested_urls(driver)
        driver.get(f"{url}/")

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition: Callable[[], Any], timeout_s: float = 30) -> Any:
        return WebDriverWait(self.driver, timeout_s, 0.05).until(lambda _: condition())

    def connected(self) -> "Page":
        self.until(lambda: self.one("#send").is_enabled())
        return self

    def choose(self, mode: str) -> None:
        self.one(f"#mode input[value={mode}]").send_keys(Keys.SPACE)

    def ask(self, text: str) -> None:
        self.one("#question").send_keys(text, Keys.ENTER)

    def answered(self, timeout_s: float = 30) -> None:
        self.until(lambda: self.all(".turn .actions:not([hidden])"), timeout_s)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_async_script(
            f"const done = arguments[arguments.length - 1]; (async () => {{ {script} }})()"
            ".then(done, (error) => done(`failed: ${error}`));",
            *arguments,
        )

    def text(self, selector: str) -> str:
        """Return the tokens' text exactly, with markup and white space."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join('')",
            f"{selector} .token:not(.silent)",
        )

    @property
    def is_wider_than_the_screen(self) -> bool:
        return self.driver.execute_script(
            "return [document.documentElement, document.querySelector('main')]"
            ".some(e => e.scrollWidth > e.clientWidth)"
        )


@pytest.fixture
def page(browser: Any, url: str) -> Page:
    return Page(browser, url).connected()


def test_an_answer_is_coloured_by_layer_and_rejected_drafts_are_struck(page, engine, url):
    page.ask("Why?")
    page.answered()

    assert page.text(".answer") == TEXT
    tokens = page.all(".answer .token")
    assert tokens[0].get_attribute("data-layer") == str(EXIT_LAYER)
    assert "early" in tokens[0].get_attribute("class")
    assert tokens[1].get_attribute("data-layer") == str(NUM_LAYERS)
    style = "background-color", "text-decoration-line"
    early, full = ([each.value_of_css_property(name) for name in style] for each in tokens[:2])
    assert early != full
    assert early[1] == "underline", "not by colour alone"
    drafts = page.all(".answer .draft")
    assert len(drafts) == len(TEXT.encode()) // 2
    assert drafts[0].text == "?"
    assert "line-through" in drafts[0].value_of_css_property("text-decoration-line")
    num_early = (len(TEXT.encode()) + 1) // 2
    assert f"layer {EXIT_LAYER} {num_early}" in page.one("#legend").text
    assert engine.requests[0].early_exit.return_trace
    assert complaints(page.driver) == []
    external = [
        each
        for each in requested_urls(page.driver)
        if not each.startswith((url, "data:", "chrome://", "about:"))
    ]
    assert external == []


def test_figures_are_live(page, engine):
    engine.token_delay_s = 0.05
    page.ask("Go")
    page.until(lambda: re.fullmatch(r"\d+(\.\d+)?", page.one("#speed").text))
    assert page.one("#stop").is_displayed(), "while the answer is still on its way"
    page.answered()

    assert page.one("#acceptance").text == "83 %"
    assert page.one("#acceptance-length").text == "2.25"
    assert "tokens/s" in page.one(".summary").text


def test_side_by_side_runs_the_same_prompt_twice_and_judges(page, engine):
    page.choose("compare")
    page.ask("Same?")
    page.answered()

    early, plain = engine.requests
    assert (early.early_exit.enabled, plain.early_exit.enabled) == (True, False)
    assert early.sampling == plain.sampling
    assert early.prompt_token_ids == plain.prompt_token_ids
    assert page.one(".verdict").text.startswith("✓ Identical, token for token:")
    assert len(page.all(".pane")) == 2


def test_a_difference_is_not_called_identical(page, engine):
    engine.text = lambda request: "ab" if request.early_exit.enabled else "ac"
    page.choose("compare")
    page.ask("Same?")
    page.answered()

    assert page.one(".verdict").text == "✗ Different from token 2 on"


def test_an_answer_without_drafts_says_so_and_why(page, engine):
    page.one("#toggle-settings").click()
    page.one("#max-drafts").send_keys("0")
    page.ask("Plainly?")
    page.answered()

    assert "no drafts were tried (off by request)" in page.one(".summary").text
    assert page.one("#acceptance").text == "\N{EN DASH}"


@pytest.mark.parametrize("how", ["escape", "button"])
def test_stopping_ends_the_request(page, engine, how):
    engine.token_delay_s = 0.1
    page.ask("Go on")
    page.until(lambda: page.all(".answer .token"))
    if how == "escape":
        page.one("#question").send_keys(Keys.ESCAPE)
    else:
        page.one("#stop").click()
    page.answered()

    assert "stopped" in page.one(".summary").text
    page.until(lambda: engine.aborted)
    assert not page.one(".error").is_displayed()


def test_the_conversation_goes_on_can_be_repeated_and_forgotten(page, engine):
    page.one("#toggle-settings").click()
    page.one("#system").send_keys("Brief")
    page.one("#seed").send_keys("5")
    page.ask("One")
    page.answered()
    page.ask("Two")
    page.until(lambda: len(engine.requests) == 2 and page.one("#send").is_displayed())
    page.all(".retry")[-1].click()
    page.until(lambda: len(engine.requests) == 3 and page.one("#send").is_displayed())

    spoken = bytes(each for each in engine.requests[1].prompt_token_ids if each < 256).decode()
    assert spoken == f"system:Briefuser:Oneassistant:{TEXT}user:Two"
    assert engine.requests[2].prompt_token_ids == engine.requests[1].prompt_token_ids
    assert engine.requests[2].sampling.seed == 5
    page.one("#clear").click()
    assert page.all(".turn") == []
    assert page.one("#welcome").is_displayed()


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"refusal": EngineOverloaded("full")}, "Too many requests are waiting"),
        ({"failure": EngineFailed("dead")}, "The engine failed"),
    ],
)
def test_errors_are_shown_and_can_be_tried_again(page, engine, failure, message):
    for name, value in failure.items():
        setattr(engine, name, value)
    page.ask("Hello")
    page.answered()
    assert message in page.one(".error").text
    engine.refusal = engine.failure = None
    page.one(".retry").click()
    page.until(lambda: page.text(".answer") == TEXT)

    assert not page.one(".error").is_displayed()


def test_a_server_that_serves_another_model_by_now_is_asked_for_it(browser, engine):
    app = fake_app(engine)
    with serving(app) as url:
        page = Page(browser, url).connected()
        app.state.context.service.model_names = ("another-model",)
        page.ask("Hello")
        page.until(lambda: "does not exist" in page.one(".error").text)
        page.until(lambda: "another-model" in page.one("#model").text)
        page.one(".retry").click()
        page.until(lambda: page.text(".answer") == TEXT)


@pytest.mark.parametrize(("own", "asked"), [({}, 0.2), ({"temperature": 0.6}, 0.6)])
def test_a_model_is_asked_at_its_own_temperature_if_it_has_one(browser, engine, own, asked):
    with serving(fake_app(engine, override_generation_config=own)) as url:
        page = Page(browser, url).connected()
        page.ask("Hello")
        page.answered()

    assert engine.requests[0].sampling.temperature == asked
    placeholder = page.one("#temperature").get_attribute("placeholder")
    assert placeholder.endswith(f"s: {own.get('temperature', 1)}")


def test_a_number_out_of_range_is_not_sent(page, engine):
    page.one("#toggle-settings").click()
    page.one("#temperature").clear()
    page.one("#temperature").send_keys("9")
    page.one("#toggle-settings").click()
    page.ask("Hello")

    assert page.one("#settings").is_displayed()
    assert engine.requests == []


def test_a_loading_model_is_waited_for(browser, engine):
    app = fake_app(engine)
    service = app.state.context.service
    load, may_load = service._load, threading.Event()

    async def load_when_told():
        while not may_load.is_set():
            await asyncio.sleep(0.02)
        return await load()

    service._load = load_when_told
    with serving(app) as url:
        page = Page(browser, url)
        page.until(lambda: "still loading" in page.one("#notice").text)
        assert not page.one("#send").is_enabled()
        may_load.set()
        page.connected()
        page.ask("Now?")
        page.answered()
        assert page.text(".answer") == TEXT


def test_a_key_is_asked_for_and_stays_in_the_tab(browser, engine):
    with serving(fake_app(engine, api_key=["sk-right"])) as url:
        page = Page(browser, url)
        for key in ("sk-wrong", "sk-right"):
            page.until(lambda: page.one("#key-dialog").is_displayed())
            page.one("#key").send_keys(key, Keys.ENTER)
            if key == "sk-wrong":
                page.until(lambda: page.one("#key-refused").is_displayed())
        page.connected()
        page.ask("Open?")
        page.answered()
        assert page.text(".answer") == TEXT
        stored = "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
        assert page.driver.execute_script(stored) == [["sk-right"], 0, ""]
        page.driver.execute_script("sessionStorage.clear()")


def test_the_keyboard_is_enough(page, engine):
    assert page.driver.switch_to.active_element.get_attribute("id") == "question"
    page.driver.switch_to.active_element.send_keys("a", Keys.SHIFT, Keys.ENTER)
    page.driver.switch_to.active_element.send_keys("b")
    assert engine.requests == []
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.answered()
    assert bytes(engine.requests[0].prompt_token_ids[1:-1]).decode() == "user:a\nb"
    page.driver.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB)
    while "answer" not in page.driver.switch_to.active_element.get_attribute("class"):
        page.driver.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)

    assert page.one("#token-card").text == (
        f"“l” ran through all {NUM_LAYERS} layers; replaced “?” (layer {EXIT_LAYER})"
    )
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.one("#token-card").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_screen_is_enough(page, engine, scheme):
    engine.text = "unbroken" * 20 + " and some words"
    set_size(page.driver, 360, 640)
    prefer(page.driver, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    assert not page.is_wider_than_the_screen
    page.one("#toggle-settings").click()
    assert not page.is_wider_than_the_screen
    page.one("#toggle-settings").click()
    page.choose("compare")
    page.ask("Fits? " + "x" * 80)
    page.answered()

    assert not page.is_wider_than_the_screen
    assert page.one("main").size["height"] > 150
    assert page.one(".draft").value_of_css_property("animation-name") == "none"


def test_text_finds_its_tokens(page):
    """Cover held-back text, characters of several tokens, control tokens, a dropped first space."""
    script = """
        const { Alignment } = await import(new URL("ui/alignment.js", document.baseURI));
        return arguments[0].map((steps) => {
          const alignment = new Alignment();
          const pieces = steps.flatMap(([tokens, text]) => {
            alignment.add(tokens.map((bytes, id) => ({ id: `${bytes}`, bytes })));
            return alignment.take(text);
          });
          const all = [...pieces, ...alignment.end()];
          return all.map((piece) => [piece.text, piece.tokens.length, piece.isContinued]);
        });
    """

    def spell(*pieces: str | bytes) -> list[list[int]]:
        return [list(each.encode() if isinstance(each, str) else each) for each in pieces]

    face = "\N{GRINNING FACE}"
    cases = [
        [[spell("He", "llo"), ""], [spell("!"), "Hello"], [[], "!"]],
        [[spell("stop"), "st"], [spell(" on"), "op on"]],
        [[spell(*(bytes([each]) for each in face.encode())), face]],
        [[spell(" Hi", " you"), "Hi you"]],
        [[spell("a", "<|tool|>", "b", "<|end|>"), "ab"]],
        [[[], "untraced"]],
    ]
    found = page.js(script.replace("arguments[0]", json.dumps(cases)))
    assert found == [
        [["He", 1, False], ["llo", 1, False], ["!", 1, False]],
        [["st", 1, False], ["op", 1, True], [" on", 1, False]],
        [[face, 4, False]],
        [["Hi", 1, False], [" you", 1, False]],
        [["a", 1, False], ["", 1, False], ["b", 1, False], ["", 1, False]],
        [["untraced", 0, False]],
    ]


def test_events_are_read_however_they_are_cut(page):
    script = """
        const { readEvents } = await import(new URL("ui/sse.js", document.baseURI));
        const lines = ["data: é", "", ": ping", "", "data: a\\r", "data: b\\r", "\\r", ""];
        const bytes = new TextEncoder().encode(lines.join("\\n"));
        const events = [];
        for (const size of [1, 3, bytes.length]) {
          const stream = new ReadableStream({ start(controller) {
            for (let at = 0; at < bytes.length; at += size)
              controller.enqueue(bytes.slice(at, at + size));
            controller.close();
          } });
          for await (const data of readEvents(stream)) events.push(data);
        }
        return events;
    """

    assert page.js(script) == ["é", "a\nb"] * 3


def test_behind_a_path_prefix(browser, engine):
    app = fake_app(engine)
    proxy = Starlette(routes=[Mount("/llm", app=app)], lifespan=app.router.lifespan_context)
    proxy.state = app.state  # `serving` looks there
    with serving(proxy) as url:
        page = Page(browser, f"{url}/llm").connected()
        page.ask("Here?")
        page.answered()
        assert page.text(".answer") == TEXT


@pytest.mark.model
def test_the_default_model_side_by_side(browser, real_server_url):
    page = Page(browser, real_server_url).connected()
    page.one("#toggle-settings").click()
    page.one("#max-tokens").clear()
    page.one("#max-tokens").send_keys("24")
    page.one("#threshold").send_keys("0.3")
    page.choose("compare")
    page.ask("List the planets of the solar system.")
    page.answered(timeout_s=300)

    assert page.one(".verdict").text.startswith("✓ Identical, token for token:")
    first, second = (page.text(f".pane:nth-child({place})") for place in (1, 2))
    assert first == second != ""
    assert page.all(".pane:first-child .token.early, .pane:first-child .draft")
    assert page.all(".pane:nth-child(2) .token.early, .pane:nth-child(2) .draft") == []
    assert complaints(page.driver) == []


def test_no_module_is_left_unused(page):
    loaded = page.driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    directory = Path(__file__).parents[2] / "server" / "ui"
    names = {each.rpartition("/")[2] for each in loaded}
    assert {path.name for path in directory.glob("*.js")} <= names
