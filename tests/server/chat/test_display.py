import io

from server.chat.client import Chunk, Draft, TracedToken
from server.chat.display import AnswerDisplay, Style, format_stats


def early(text, layer=3, rejected=()):
    return TracedToken(text=text, exit_layer=layer, is_early=True, rejected=rejected)


def full(text, rejected=()):
    return TracedToken(text=text, exit_layer=30, is_early=False, rejected=rejected)


def shown(*chunks, coloured, show_exits=True):
    output = io.StringIO()
    display = AnswerDisplay(output, Style(coloured), show_exits=show_exits)
    for chunk in chunks:
        display.show(chunk)
    display.end()
    return output.getvalue()


def test_tokens_take_the_colour_of_their_layer_and_rejected_drafts_are_struck():
    rejected = (Draft(text=" dog\n", exit_layer=3),)
    text = shown(Chunk(text="a cat", trace=(early("a"), full(" cat", rejected))), coloured=True)

    assert text.startswith("\x1b[38;5;42ma\x1b[0m\x1b[2;9m dog⏎\x1b[0m cat\n")
    assert "full depth: 1" in text


def test_without_colours_the_answer_is_plain_and_the_legend_counts():
    rejected = (Draft(text=" dog", exit_layer=3),)
    text = shown(Chunk(text="a cat", trace=(early("a"), full(" cat", rejected))), coloured=False)

    assert text == "a cat\ntokens by exit  layer 3: 1  full depth: 1  rejected: 1\n"


def test_text_that_lags_behind_its_tokens_is_shown_once_and_whole():
    chunks = (
        Chunk(text="", trace=(early("<"), full("en"))),  # held back, as it may become a stop string
        Chunk(text="<en", trace=()),
        Chunk(text="", trace=(early("\ufffd"),)),  # half a character
        Chunk(text="é!", trace=(early("\ufffd"), full("!"))),
    )

    assert shown(*chunks, coloured=False).startswith("<ené!\n")


def test_control_characters_never_reach_the_terminal():
    text = shown(Chunk(text="a\x1b[2Jb\x9bc\n\td"), coloured=True, show_exits=False)

    assert text == "a[2Jbc\n\td\n"


def test_figures_of_an_answer():
    metrics = {
        "speculative_decoding": {"num_draft_tokens": 20, "draft_acceptance_rate": 0.75},
        "early_exit": {"accepted_by_layer": {"21": 5, "3": 10}},
    }

    assert format_stats(41, 0.5, 2.5, metrics) == (
        "41 tokens · 20.0 tok/s · first after 500 ms · 75% of 20 drafts accepted"
        " · exits by layer 3: 10, 21: 5"
    )


def test_figures_of_an_empty_answer():
    assert format_stats(0, 0.1, 0.1, {}) == "0 tokens · ? tok/s · first after 100 ms"
