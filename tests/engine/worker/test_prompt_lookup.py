"""Look-ups find what followed the longest earlier match, also as the text and its drafts grow."""

import random

import pytest

from engine.worker.prompt_lookup import Continuation, PromptLookup


def test_nothing_is_found_after_a_new_token() -> None:
    assert PromptLookup([1, 2, 3]).find([], 4) is None
    assert PromptLookup([1]).find([], 4) is None
    assert PromptLookup([1, 1, 1]).find([], 0) is None


def test_the_longest_match_wins_over_the_latest_place() -> None:
    tokens = [1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]
    assert PromptLookup(tokens).find([], 2) == Continuation([7, 9], match=3, agreement=1.0)


def test_of_equal_places_most_decide_and_say_how_many_agree() -> None:
    found = PromptLookup([5, 1, 5, 1, 5, 2, 6, 5]).find([], 1)
    assert found == Continuation([1], match=1, agreement=2 / 3)


def test_sampling_noise_chooses_among_equal_places() -> None:
    lookup = PromptLookup([5, 1, 5, 1, 5, 2, 6, 5])
    found = lookup.find([], 1, noise=lambda token_id: 3.0 if token_id == 2 else 0.0)
    assert found == Continuation([2], match=1, agreement=1 / 3)


def test_what_occurred_more_often_takes_more_noise_to_beat() -> None:
    lookup = PromptLookup([5, 1, 5, 1, 5, 2, 6, 5])
    found = lookup.find([], 1, noise=lambda token_id: 0.5 if token_id == 2 else 0.0)
    assert found == Continuation([1], match=1, agreement=2 / 3)


def test_only_the_latest_places_count() -> None:
    early = [token_id for number in range(9) for token_id in (100 + number, 5, 1)]
    late = [token_id for number in range(8) for token_id in (200 + number, 5, 2)]
    found = PromptLookup([*early, *late, 99, 5]).find([], 1)
    assert found == Continuation([2], match=1, agreement=1.0)


def test_what_follows_the_text_are_its_drafts() -> None:
    found = PromptLookup([1, 2, 3]).find([1], 3)
    assert found == Continuation([2, 3, 1], match=1, agreement=1.0)


def test_a_loop_goes_on_beyond_the_end() -> None:
    found = PromptLookup([1, 2, 3, 1, 2, 3]).find([], 7)
    assert found is not None
    assert found.token_ids == [1, 2, 3, 1, 2, 3, 1]


def test_drafts_count_as_text_to_continue() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9])
    assert lookup.find([], 2) is None
    assert lookup.find([1, 2], 2) == Continuation([3, 4], match=2, agreement=1.0)
    assert lookup.find([], 2) is None  # drafts leave no trace


def test_a_long_prompt_is_indexed_bit_by_bit() -> None:
    tokens = [*range(10_000), 5, 6]
    lookup = PromptLookup(tokens)
    assert lookup.find([7], 2) == Continuation([8, 9], match=3, agreement=1.0)
    tokens[-2:] = [9_000, 9_001]
    assert lookup.find([], 2) is None
    assert lookup.find([], 2) == Continuation([9_002, 9_003], match=2, agreement=1.0)


@pytest.mark.parametrize("seed", range(20))
def test_appended_tokens_are_found_as_if_they_had_always_been_there(seed: int) -> None:
    rng = random.Random(seed)
    whole = [rng.randint(0, 4) for _ in range(60)]
    growing: list[int] = []
    lookup = PromptLookup(growing)
    while len(growing) < len(whole):
        growing += whole[len(growing) : len(growing) + rng.randint(1, 5)]
        assert lookup.find([], 6) == PromptLookup(list(growing)).find([], 6)
        found = lookup.find([], 1)
        if found is not None:  # an earlier place has as many equal tokens before it
            tail = growing[-found.match :]
            starts = range(len(growing) - found.match)
            nexts = {
                growing[i + found.match] for i in starts if growing[i : i + found.match] == tail
            }
            assert found.token_ids[0] in nexts
