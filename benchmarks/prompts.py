"""The prompts of a benchmark, from a JSON-lines file or built in."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, cycle, zip_longest
from pathlib import Path
from typing import Any

from benchmarks.chats import CHATS
from benchmarks.contest import Entry
from training.prompts import Prompt, read_prompts

_BUILT_IN = {
    "math": (
        "Solve step by step: a baker sells 24 rolls in the morning and half as many in the "
        "afternoon. Each roll costs 1.50 dollars. How much does she earn in a day?",
        "Solve step by step: a train covers 180 km in 2 hours and then 120 km in 1.5 hours. "
        "What is its average speed over the whole journey?",
        "Solve step by step: Nora reads 15 pages every day and twice as many on Sundays. How "
        "long does a book of 315 pages last her if she begins on a Monday?",
        "Solve step by step: a tank holds 500 litres. One pipe fills 20 litres a minute and a "
        "leak loses 4. After how many minutes is the empty tank half full?",
        "Solve step by step: three friends share a bill of 87 dollars. Ada pays twice as much "
        "as Ben, and Ben pays 7 dollars more than Cleo. What does each of them pay?",
    ),
    "summarize": (
        "Summarize in two sentences: The town library will close for eight weeks from June. "
        "During that time the roof is replaced, the reading room gets new windows, and the "
        "children's section moves to the ground floor. Books can be returned at the town hall. "
        "Loans due in the closing weeks are extended until September without a fee.",
        "Summarize this conversation:\nMia: Did you book the cabin?\nTom: Yes, Friday to Monday, "
        "but it has no heating.\nMia: In October? We will freeze.\nTom: There is a stove and the "
        "owner leaves us wood.\nMia: Fine, I bring the warm blankets. Who drives?\nTom: I do, I "
        "pick you up at four.",
        "Summarize in one paragraph: Honey bees tell each other where food is by dancing. The "
        "angle of the dance shows the direction relative to the sun, and its length shows the "
        "distance. Other bees follow the dancer in the dark hive and feel its movements. "
        "Experiments with artificial flowers have shown that most followers fly to the right "
        "place even when the scent has been removed.",
        "Summarize the decision: The committee looked at three offers for the new buses. The "
        "cheapest does not meet the noise limits. The second is electric but can be delivered "
        "only in two years. The third costs eight percent more than planned, is electric and can "
        "be delivered in spring. The committee recommends the third and asks the council to move "
        "the difference from the road budget.",
        "Give the main points of this text: Bread goes stale mainly because its starch "
        "crystallizes, not because it dries. This is fastest just above freezing, so bread keeps "
        "worse in the refrigerator than at room temperature. Freezing stops the process, and "
        "warming a stale loaf reverses part of it for a short while.",
    ),
    "qa": (
        "Why is the sky blue during the day and red at sunset?",
        "What is the difference between weather and climate?",
        "How does a refrigerator keep food cold?",
        "Why do leap years exist, and how are they decided?",
        "What happens in the body when someone gets a vaccine?",
    ),
    "write": (
        "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
        "Write a friendly email asking a colleague to swap shifts next Thursday.",
        "Write a poem of three stanzas about the first snow of the year.",
        "Write a product description for a folding bicycle made for commuters.",
        "Write a short speech to thank the volunteers of a neighbourhood garden.",
    ),
    "instruct": (
        "List ten ideas for a rainy afternoon with two small children.",
        "Give step-by-step instructions for repotting a house plant.",
        "Make a packing list for a three-day hike in the mountains in autumn.",
        "Explain to a beginner how to prepare for a first job interview.",
        "Compare tea and coffee in a table with five rows.",
    ),
    "code": (
        "Write a Python function `merge_sorted(a, b)` that merges two sorted lists into one.",
        "Write a Python class `Stack` with push, pop, peek and a length, and show its use.",
        "Write a Python function that counts the words of a text file and prints the ten most "
        "frequent.",
        "Write a Python function `is_balanced(text)` that checks whether brackets match.",
        "Explain this code line by line:\n\n```python\ndef primes(n):\n"
        "    sieve = [True] * (n + 1)\n    for i in range(2, int(n**0.5) + 1):\n"
        "        if sieve[i]:\n"
        "            sieve[i * i :: i] = [False] * len(sieve[i * i :: i])\n"
        "    return [i for i in range(2, n + 1) if sieve[i]]\n```",
    ),
}


def choose_prompts(file: Path | None, per_task: int | None) -> list[Prompt]:
    """Return at most `per_task` prompts of each task, with the tasks taking turns.

    Raises:
        ValueError: if the file cannot be read, is not of that form or holds no prompt.
    """
    if file is None:
        prompts = [Prompt(task, text) for task, texts in _BUILT_IN.items() for text in texts]
        prompts += [Prompt("chat", chat[-1], history=chat[:-1]) for chat in CHATS]
    else:
        try:
            prompts = read_prompts(file)
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}") from None
    by_task: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_task[prompt.task].append(prompt)
    if not by_task:
        raise ValueError(f"{file} contains no prompts")
    return _take_turns([tasks[:per_task] for tasks in by_task.values()])


def encode_prompts(prompts: Sequence[Prompt], directory: Path) -> tuple[Entry, ...]:
    """Encode prompts with the model's chat template, or their text alone if it has none."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))

    def encode(prompt: Prompt) -> tuple[int, ...]:
        if not tokenizer.chat_template:
            return tuple(tokenizer(prompt.text)["input_ids"])
        messages = [
            {"role": role, "content": content}
            for role, content in zip(
                cycle(("user", "assistant")), (*prompt.history, prompt.text), strict=False
            )
        ]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        return tuple(encoded["input_ids"])

    return tuple(
        Entry(index=index, task=prompt.task, token_ids=encode(prompt))
        for index, prompt in enumerate(prompts)
    )


def _take_turns(groups: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    turns = chain.from_iterable(zip_longest(*groups))
    return [prompt for prompt in turns if prompt is not None]
