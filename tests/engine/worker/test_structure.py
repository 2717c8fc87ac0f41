"""A structure's mask follows drafts and rolls them back; earlier output is replayed.

Outputs count as equal if all tokens and all bits of their log-probabilities are.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from backends import available_ops
from hypothesis import given, settings
from hypothesis.strategies import DataObject, data, integers, lists, sampled_from
from numpy.typing import NDArray
from tiny_model import (
    VOCAB,
    StepDriver,
    load_tiny,
    policy_drafter,
    random_heads,
    sequence_start,
    write_tiny_llama,
)
from xgrammar import GrammarMatcher

from benchmarks.scripted import Agreement, ScriptedDrafter
from engine.errors import StructureError
from engine.grammar.compiler import GrammarCompiler
from engine.model.decoder import Decoder
from engine.plan import RowResult, SequenceStart
from engine.request import Structure, TokenLogprobs
from engine.worker.structure import StructureState
from engine.worker.token_bits import TokenBits, has_token, token_bits

pytestmark = pytest.mark.torch

EOS = 256
VOCABULARY = [*(bytes([byte]) for byte in range(256)), b"", b""]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(VOCABULARY, [EOS])


def state(compiler: GrammarCompiler, pattern: str, output: Sequence[int] = b"") -> StructureState:
    grammar = compiler.compile(Structure(kind="regex", source=pattern))
    return StructureState(GrammarMatcher(grammar), len(VOCABULARY), [EOS], output)


def ids(mask: TokenBits | None) -> list[int]:
    assert mask is not None
    return [token_id for token_id in range(32 * len(mask)) if has_token(mask, token_id)]


def test_of_listed_tokens_those_that_fit_and_else_the_end_of_what_is_complete(
    compiler: GrammarCompiler,
) -> None:
    structure = state(compiler, "a[0-9]*")

    def left(drafts: bytes, listed: bytes, *, puts_off_end: bool = False) -> list[int]:
        bits = token_bits(listed, len(VOCABULARY))
        return ids(structure.allowed(drafts, puts_off_end=puts_off_end, listed=bits))

    assert left(b"", b"a7x") == [ord("a")]
    assert left(b"a", b"a7x") == [ord("7")], "the end is not listed, and something that is can come"
    assert left(b"a", b"ax") == left(b"a", b"ax", puts_off_end=True) == [EOS]
    assert left(b"", b"x") == [], "nothing that is listed, and no end either"


def test_drafts_are_followed_and_taken_back(compiler: GrammarCompiler) -> None:
    structure = state(compiler, "ab[0-9]+")
    assert ids(structure.allowed(b"a", puts_off_end=False)) == [ord("b")]
    assert ids(structure.allowed(b"", puts_off_end=False)) == [ord("a")]
    assert structure.allowed(b"ax", puts_off_end=False) is None, "nothing after it can be accepted"
    structure.append(b"ab1")
    replayed = state(compiler, "ab[0-9]+", b"ab1")
    assert ids(structure.allowed(b"2", puts_off_end=False)) == ids(
        replayed.allowed(b"2", puts_off_end=False)
    )


class Watched:
    """A matcher whose calls are counted."""

    def __init__(self, matcher: GrammarMatcher) -> None:
        self._matcher = matcher
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., object]:
        self.calls[name] += 1
        return getattr(self._matcher, name)


def test_a_token_is_fed_once_however_often_it_is_asked_for(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Structure(kind="regex", source="[a-z]*"))
    matcher = Watched(GrammarMatcher(grammar))
    structure = StructureState(matcher, len(VOCABULARY), [EOS], ())
    for drafts in (b"", b"a", b"ab", b"abc", b"ab", b"", b"abc"):
        assert structure.allowed(drafts, puts_off_end=False) is not None
    assert matcher.calls["accept_token"] == 3, "drafts that continue the last ones"
    assert matcher.calls["fill_next_token_bitmask"] == 4
    structure.append(b"abx")
    assert matcher.calls["accept_token"] == 4, "what was accepted has been fed already"
    assert matcher.calls["rollback"] == 1
    structure.allowed(b"yz", puts_off_end=False)
    structure.allowed(b"q", puts_off_end=False)
    assert matcher.calls["rollback"] == 2


@given(data())
@settings(max_examples=60, deadline=None)
def test_whatever_was_asked_before_the_mask_is_that_of_a_new_matcher(
    compiler: GrammarCompiler, source: DataObject
) -> None:
    pattern = "(ab|ac[0-9]?|[x-z]{2})*!"
    tokens = sampled_from([*b"abcxyz01!", EOS])
    structure, output = state(compiler, pattern), list[int]()
    for _ in range(source.draw(integers(1, 5))):
        for drafts in source.draw(lists(lists(tokens, max_size=4), max_size=4)):
            fresh = state(compiler, pattern, output).allowed(drafts, puts_off_end=False)
            found = structure.allowed(drafts, puts_off_end=False)
            assert (found is None) == (fresh is None)
            assert found is None or ids(found) == ids(fresh)
        drawn = source.draw(lists(tokens, min_size=1, max_size=4))
        tried = state(compiler, pattern, output)
        accepted: list[int] = []
        for token_id in drawn:
            mask = tried.allowed(accepted, puts_off_end=False)
            if mask is None or not has_token(mask, token_id):
                break
            accepted.append(token_id)
        structure.append(accepted)
        output += accepted
        assert structure.error is None
        if EOS in accepted:
            return


def test_the_end_is_put_off_only_while_there_is_something_else(compiler: GrammarCompiler) -> None:
    structure = state(compiler, "[0-9]{1,2}", b"1")
    assert EOS in ids(structure.allowed([], puts_off_end=False))
    assert EOS not in ids(structure.allowed([], puts_off_end=True))
    structure.append(b"2")
    assert ids(structure.allowed([], puts_off_end=True)) == [EOS]
    structure.append([EOS, 5])
    assert structure.error is None, "what comes after the end does not count"


def test_output_that_left_its_structure_allows_nothing(compiler: GrammarCompiler) -> None:
    structure = state(compiler, "a", b"b")
    assert structure.error is not None
    assert ids(structure.allowed([], puts_off_end=False)) == []


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "["),
        ("json_schema", '{"properties": {"a": {"not": {}}}}'),
        ("json_schema", "{nope"),
        ("grammar", "x"),
        ("structural_tag", "{}"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    compiler: GrammarCompiler, kind: str, source: str
) -> None:
    with pytest.raises(StructureError):
        compiler.compile(Structure(kind=kind, source=source))  # type: ignore[arg-type]


# ---- through the decode step: structures and early exits together change nothing ----

NUM_TOKENS = 30
WORDS = r"([A-Z][a-z]{1,3} ){400}"
PROMPTS = {0: [5, 9, 2, 44, 17], 1: [3], 2: list(range(20, 60))}
SAMPLING = {
    "greedy": {},
    "hot": {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01},
    "processors": {"temperature": 0.7, "repetition_penalty": 1.3, "logit_bias": {50: 4.0}},
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), available_ops()[-1])


@pytest.fixture(scope="module")
def tiny_compiler() -> GrammarCompiler:
    """A compiler that takes the tiny model's tokens for characters, and the last for the end."""
    return GrammarCompiler([*(bytes([30 + i]) for i in range(VOCAB - 1)), b""], [VOCAB - 1])


class Driver(StepDriver):
    """A driver in which rows 0 and 2 follow a structure, and row 1 does not."""

    def __init__(self, decoder: Decoder, compiler: GrammarCompiler, drafter: object = None) -> None:
        grammar = compiler.compile(Structure(kind="regex", source=WORDS))

        def open_structure(start: SequenceStart) -> StructureState | None:
            if start.sequence_id == 1:
                return None
            output = start.token_ids[start.num_prompt_tokens :]
            return StructureState(GrammarMatcher(grammar), VOCAB, [VOCAB - 1], output)

        super().__init__(decoder, 16, drafter, open_structure)  # type: ignore[arg-type]


Outputs = dict[int, tuple[list[int], list[TokenLogprobs]]]  # by sequence: tokens, log-probabilities


def starts(options: dict, **more: object) -> list[SequenceStart]:
    return [
        sequence_start(i, prompt, num_logprobs=2, **options, **more)
        for i, prompt in PROMPTS.items()
    ]


def outputs(tokens: dict[int, list[int]], results: Sequence[RowResult]) -> Outputs:
    """Return the output tokens, as many as were asked for, and their log-probabilities."""
    found: Outputs = {}
    for i, prompt in PROMPTS.items():
        if i in tokens:
            logprobs = [each for r in results if r.sequence_id == i for each in r.logprobs]
            found[i] = (tokens[i][len(prompt) :][:NUM_TOKENS], logprobs[:NUM_TOKENS])
    return found


def plainly(decoder: Decoder, compiler: GrammarCompiler, options: dict) -> Outputs:
    alone: Outputs = {}
    for start in starts(options):
        alone |= outputs(*Driver(decoder, compiler).generate([start], NUM_TOKENS))
    return alone


@pytest.mark.parametrize("agreement", ["always", "never", "sometimes"])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_scripted_drafts_change_nothing_under_a_structure(
    decoder: Decoder, tiny_compiler: GrammarCompiler, sampling: str, agreement: Agreement
) -> None:
    options = SAMPLING[sampling]
    plain = plainly(decoder, tiny_compiler, options)
    for i in (0, 2):
        text = bytes(30 + token for token in plain[i][0]).decode()
        assert re.fullmatch(r"([A-Z][a-z]{1,3} )*([A-Z][a-z]{0,3})?", text), text
    script = {tuple(prompt): [*prompt, *plain[i][0]] for i, prompt in PROMPTS.items()}
    for exits in ([1], [1, 3], [2, 3, 5]):
        drafter = ScriptedDrafter(exits, script, agreement, VOCAB)
        driver = Driver(decoder, tiny_compiler, drafter)
        tokens, results = driver.generate(starts(options), NUM_TOKENS, chunk=7)
        assert outputs(tokens, results) == plain
        assert any(result.drafts for result in results)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_heads_draft_what_the_structure_allows(
    decoder: Decoder, tiny_compiler: GrammarCompiler, sampling: str
) -> None:
    options = SAMPLING[sampling]
    plain = plainly(decoder, tiny_compiler, options)
    drafter = policy_drafter(decoder, random_heads(decoder, [1, 3], VOCAB))
    driver = Driver(decoder, tiny_compiler, drafter)
    tokens, results = driver.generate(starts(options, threshold=0.0), NUM_TOKENS)
    assert outputs(tokens, results) == plain
    drafts = [d for result in results if result.sequence_id == 0 for d in result.drafts]
    assert drafts
    allowed = re.compile("[A-Za-z ]")
    assert all(allowed.fullmatch(chr(30 + draft.token_id)) for draft in drafts)


class SlowMatcher:
    """A matcher that takes longer with every token, as for ambiguous grammars."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.num_tokens = 0

    def is_terminated(self) -> bool:
        return False

    def accept_token(self, token_id: int) -> bool:
        self.num_tokens += 1
        self.seconds += 1e-6 * self.num_tokens**3
        return True

    def fill_next_token_bitmask(self, words: NDArray[np.int32]) -> None:
        words.fill(-1)
        self.seconds += 0.005

    def rollback(self, count: int) -> None:
        self.num_tokens -= count


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_what_takes_ever_longer_to_follow_is_given_up_in_time(num_drafts: int) -> None:
    matcher = SlowMatcher()
    structure = StructureState(matcher, 8, [7], (), clock=lambda: matcher.seconds)
    longest_s, num_steps = 0.0, 0
    while structure.error is None and num_steps < 1000:
        before_s, num_steps = matcher.seconds, num_steps + 1
        for count in range(num_drafts + 1):
            structure.allowed([1] * count, puts_off_end=False)
        structure.append([1])
        longest_s = max(longest_s, matcher.seconds - before_s)
    assert structure.is_too_slow
    assert longest_s < 1, "no step waits long for it"
    assert matcher.seconds < 2 + 0.01 * num_steps * 2 * (num_drafts + 1) ** 2
    assert ids(structure.allowed((), puts_off_end=False)) == []


def test_what_takes_long_once_is_followed_on() -> None:
    matcher = SlowMatcher()
    structure = StructureState(matcher, 8, [7], (), clock=lambda: matcher.seconds)
    for _ in range(200):
        matcher.seconds, matcher.num_tokens = matcher.seconds + 1e-3, 0
        structure.allowed((), puts_off_end=False)
        structure.append([1])
    assert structure.error is None
