import pytest

from benchmarks.contest import Contest, Entry, Outcome


class CountingContestant:
    """A contestant that echoes prompts, and remembers how many came at once."""

    def __init__(self):
        self.sizes = []

    def run(self, prompts, seeds, at_once=None):
        self.sizes.append(len(prompts))
        self.at_once = at_once
        return Outcome(token_ids=tuple(prompts), duration_s=1.0, first_token_s=0.5)


def make_contest(modes, num_prompts, concurrencies):
    entries = tuple(Entry(index=i, task="math", token_ids=(i,)) for i in range(num_prompts))
    contestants = {mode: CountingContestant() for mode in modes}
    return Contest(contestants=contestants, entries=entries, concurrencies=concurrencies)


def test_every_mode_runs_every_prompt_and_the_first_run_is_not_counted():
    contest = make_contest(["plain", "early-exit"], 3, (1, 2))

    runs = contest.measure()

    assert contest.contestants["plain"].sizes == [1, 1, 1, 1, 2, 1]
    assert len(runs) == 2 * (3 + 2)
    assert {run.prompt_indices for run in runs if run.concurrency == 2} == {(0, 1), (2,)}


def test_modes_take_turns_in_changing_order():
    contest = make_contest(["plain", "early-exit"], 3, (1,))

    order = [run.mode for run in contest.measure()]

    assert order == ["plain", "early-exit", "early-exit", "plain", "plain", "early-exit"]


def test_transformers_runs_single_prompts_only():
    contest = make_contest(["plain", "transformers"], 4, (1, 4))

    runs = contest.measure()

    assert {run.concurrency for run in runs if run.mode == "transformers"} == {1}


def make_mixed(num_each, concurrencies, group_by=None, continuous=False):
    tasks = ["math", "qa"] * num_each
    entries = tuple(Entry(index=i, task=task, token_ids=(i,)) for i, task in enumerate(tasks))
    contestants = {"plain": CountingContestant()}
    return Contest(
        contestants=contestants,
        entries=entries,
        concurrencies=concurrencies,
        group_by=group_by,
        continuous=continuous,
    )


def groups(contest, concurrency):
    return [run.prompt_indices for run in contest.measure() if run.concurrency == concurrency]


def test_groups_are_of_one_task_where_every_task_has_enough_prompts():
    assert groups(make_mixed(3, (2, 4)), 2) == [(0, 2), (4,), (1, 3), (5,)]
    assert groups(make_mixed(3, (2, 4)), 4) == [(0, 1, 2, 3), (4, 5)]


def test_groups_are_as_asked():
    assert groups(make_mixed(2, (2,), "order"), 2) == [(0, 1), (2, 3)]
    assert groups(make_mixed(2, (2,), "task"), 2) == [(0, 2), (1, 3)]
    with pytest.raises(ValueError, match="2 prompts of task 'math' are fewer than 4"):
        make_mixed(2, (1, 4), "task")


def test_where_a_prompt_ends_the_next_begins_until_a_task_is_through():
    contest = make_mixed(3, (1, 2), continuous=True)
    assert groups(contest, 2) == [(0, 2, 4), (1, 3, 5)]
    assert contest.contestants["plain"].at_once == 2
    assert len(groups(contest, 1)) == 6
    assert groups(make_mixed(3, (2,), "order", continuous=True), 2) == [(0, 1, 2, 3, 4, 5)]
