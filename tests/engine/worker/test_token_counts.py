"""Counts that have grown are those of counting again."""

from collections import Counter

from engine.worker.token_counts import TokenCounts


def counted(counts: TokenCounts, drafts: list[int]) -> dict[int, int]:
    ids, numbers = counts.with_drafts(drafts)
    assert len(set(ids.tolist())) == len(ids)
    return dict(zip(ids.tolist(), numbers.tolist(), strict=True))


def test_they_grow_with_the_output_and_know_the_prompt() -> None:
    prompt, output = [5, 9, 5, 2], [9, 300]
    counts = TokenCounts(prompt, output)
    for number in range(500):
        token_id = number * 31 % 97
        counts.append([token_id, token_id + 1])
        output += [token_id, token_id + 1]
    assert counted(counts, []) == dict.fromkeys(prompt, 0) | Counter(output)


def test_drafts_count_for_one_call_only() -> None:
    counts = TokenCounts([5, 9], [9])
    assert counted(counts, [7, 9, 7, 5]) == {5: 1, 9: 2, 7: 2}
    assert counted(counts, []) == {5: 0, 9: 1}
    assert counted(TokenCounts([], []), [3]) == {3: 1}
