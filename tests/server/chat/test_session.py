import io

import pytest
from scripted_server import DONE, delta, final

from server.chat.client import ChatClient, ChatError, Chunk
from server.chat.display import Style
from server.chat.session import ChatOptions, ChatSession, converse


@pytest.fixture
def client(script):
    client = ChatClient(script.url)
    yield client
    client.close()


@pytest.fixture
def output():
    return io.StringIO()


def make_session(client, output, **options):
    return ChatSession(client, ChatOptions(model="m", **options), output, Style(False))


def test_the_conversation_goes_along_with_every_question(script, client, output):
    script.answers = [[delta("one"), DONE], [delta("two"), DONE]]
    session = make_session(client, output, system="be brief")

    session.handle("first\n")
    session.handle("second\n")

    assert [(m["role"], m["content"]) for m in script.bodies[1]["messages"]] == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "one"),
        ("user", "second"),
    ]
    assert output.getvalue() == "one\ntwo\n"


def test_options_reach_the_server(script, client, output):
    script.answers = [[DONE]]
    options = {"temperature": 0.5, "max_tokens": 7, "early_exit": False, "show_exits": True}

    make_session(client, output, **options).handle("hi")

    body = script.bodies[0]
    assert (body["temperature"], body["max_tokens"]) == (0.5, 7)
    assert body["early_exit"] == {"enabled": False, "return_trace": True}


def test_what_is_not_set_is_left_to_the_server(script, client, output):
    script.answers = [[DONE]]

    make_session(client, output).handle("hi")

    assert not {"temperature", "max_tokens", "early_exit"} & script.bodies[0].keys()


def test_commands(script, client, output):
    script.answers = [[delta("one"), DONE], [delta("two"), DONE]]
    session = make_session(client, output, system="old")

    session.handle("first")
    assert session.handle("/system new one")
    assert session.handle("/exits")
    assert session.handle("/nonsense")
    session.handle("second")

    assert [m["content"] for m in script.bodies[1]["messages"]] == ["new one", "second"]
    assert script.bodies[1]["early_exit"] == {"return_trace": True}
    assert "unknown command /nonsense" in output.getvalue()
    assert not session.handle("/quit")


def test_figures_follow_the_answer_when_asked_for(script, client, output):
    script.answers = [[delta("one"), delta(" two"), final(2), DONE]]

    make_session(client, output, stats=True).handle("hi")

    assert "2 tokens" in output.getvalue().splitlines()[-1]


def test_a_failed_question_leaves_no_trace_in_the_conversation(script, client, output):
    script.answers = [[delta("half")], [DONE]]
    session = make_session(client, output)

    with pytest.raises(ChatError):
        session.handle("first")
    session.handle("second")

    assert [m["content"] for m in script.bodies[1]["messages"]] == ["second"]


class InterruptedClient:
    """A client in which Ctrl-C arrives after the first chunk."""

    def __init__(self):
        self.messages = []
        self.is_closed = False

    def stream(self, messages, options):
        self.messages = messages
        try:
            yield Chunk(text="par")
            raise KeyboardInterrupt
        finally:
            self.is_closed = True


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(output):
    client = InterruptedClient()
    session = make_session(client, output)

    session.handle("first")
    session.handle("second")

    assert client.is_closed
    assert [m["content"] for m in client.messages] == ["first", "par", "second"]
    assert "(stopped)" in output.getvalue()


def test_the_loop_survives_errors_and_ctrl_c_and_ends_with_the_input(script, client, output):
    script.error = (503, "busy")
    events = iter(["hello", KeyboardInterrupt, EOFError])

    def read():
        event = next(events)
        if isinstance(event, str):
            return event
        raise event

    converse(make_session(client, output), read, output, Style(False))

    assert "error: 503: busy" in output.getvalue()
    assert "/quit or Ctrl-D" in output.getvalue()
