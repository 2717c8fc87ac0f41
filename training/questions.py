"""Decides which questions the model is asked, in which order and with which sampling parameters.

Each prompt is asked up to a fixed number of times, and some answers get a follow-up question.
Heads must know the text that people get, so the rounds of questions differ: each has one
temperature of a fixed list, greedy most often, and in every fourth the answers may be longer. Once
all prompts were asked they are asked again, at temperatures above 0 only, since a greedy answer
would be the same one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from training.generations import Generation
from training.prompts import FOLLOW_UPS, Prompt

LONGEST_PROMPT = 1024
MOST_LENGTHS = 3  # the longest answers may have this many times the usual length

_TEMPERATURES = (0.0, 0.8, 0.0, 0.5, 1.0)
_TEMPERATURES_AGAIN = (0.8, 0.5, 1.0)
# Multiples of the usual length, by round. Their number and those of the temperatures have no common
# divisor, so that every length occurs with every temperature.
_LENGTHS = (1, 1, 1, MOST_LENGTHS)
_SECOND_TURN_EVERY = 4  # every fourth complete answer gets a follow-up, if it is to a first turn
_MOST_TIMES = 8  # a prompt is asked at most

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Question:
    """A chat that waits for an answer."""

    task: str
    messages: Messages  # empty if the model has no chat template: the prompt is plain text
    prompt_ids: list[int]

    @property
    def is_first_turn(self) -> bool:
        """Whether it is a chat's only question so far."""
        return len(self.messages) == 1


@dataclass(frozen=True, slots=True)
class Ask:
    """A question, and the sampling parameters of its answer."""

    question: Question
    temperature: float
    seed: int
    max_new_tokens: int


class Interviewer:
    """Turns prompts and answers into questions that leave room for the longest answer.

    Methods return a list of one question, or an empty one if the question is too long.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, room: int) -> None:
        """
        Args:
            room: Tokens of the context that a prompt may take.

        Raises:
            ValueError: if there is no room.
        """
        if room < 1:
            raise ValueError("--max-new-tokens: the model's context leaves no room for a prompt")
        self._tokenizer = tokenizer
        self._longest = min(room, LONGEST_PROMPT)

    def first_turn(self, prompt: Prompt) -> list[Question]:
        """Ask a prompt as a user message, or as plain text if the model has no chat template."""
        if not self._tokenizer.chat_template:
            prompt_ids = list(self._tokenizer(prompt.text)["input_ids"])
            return self._if_it_fits(Question(prompt.task, [], prompt_ids))
        return self._ask(prompt.task, [{"role": "user", "content": prompt.text}])

    def second_turn(self, question: Question, answer: Generation) -> list[Question]:
        """Ask a follow-up question about an answer."""
        text = self._tokenizer.decode(answer.output_ids, skip_special_tokens=True)
        follow_up = FOLLOW_UPS[len(answer.output_ids) % len(FOLLOW_UPS)]
        turns = [{"role": "assistant", "content": text}, {"role": "user", "content": follow_up}]
        return self._ask("chat", question.messages + turns)

    def _ask(self, task: str, messages: Messages) -> list[Question]:
        encoded = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        return self._if_it_fits(Question(task, messages, list(encoded["input_ids"])))

    def _if_it_fits(self, question: Question) -> list[Question]:
        return [question] if 0 < len(question.prompt_ids) <= self._longest else []


class Agenda:
    """The order of questions; it goes on where an earlier run ended, by counting its answers."""

    def __init__(
        self,
        interviewer: Interviewer,
        prompts: Sequence[Prompt],
        answered: Sequence[Generation],
        *,
        round_size: int,
        max_new_tokens: int,
    ) -> None:
        """
        Args:
            answered: Generations of earlier runs.
            round_size: Questions of one round, which share temperature and length.
        """
        self._interviewer = interviewer
        self._round_size = round_size
        self._max_new_tokens = max_new_tokens
        self._questions = [q for prompt in prompts for q in interviewer.first_turn(prompt)]
        self._times = Counter(tuple(row.prompt_ids) for row in answered)
        self._num_asked = len(answered)
        self._num_rounds = len(answered) // round_size
        self._num_ended = 0
        self._is_again = False
        self._first_turns = self._passes()
        self._second_turns: list[Question] = []

    def next_round(self) -> list[Ask]:
        """Return the next questions; none if everything was asked often enough."""
        asked, self._second_turns = self._second_turns, []
        is_again = self._is_again
        for question in self._first_turns:
            asked.append(question)
            is_again = self._is_again
            if len(asked) >= self._round_size:
                break
        temperatures = _TEMPERATURES_AGAIN if is_again else _TEMPERATURES
        temperature = temperatures[self._num_rounds % len(temperatures)]
        length = self._max_new_tokens * _LENGTHS[self._num_rounds % len(_LENGTHS)]
        self._num_rounds += 1
        first, self._num_asked = self._num_asked, self._num_asked + len(asked)
        return [
            Ask(question, temperature, first + index, length)
            for index, question in enumerate(asked)
        ]

    def note(self, question: Question, answer: Generation) -> None:
        """Take note of an answer that has ended by itself; it may get a follow-up question."""
        self._num_ended += 1
        if question.is_first_turn and self._num_ended % _SECOND_TURN_EVERY == 0:
            self._second_turns += self._interviewer.second_turn(question, answer)

    def _passes(self) -> Iterator[Question]:
        for done in range(_MOST_TIMES):
            self._is_again = done > 0
            for question in self._questions:
                if self._times[tuple(question.prompt_ids)] <= done:
                    yield question
