import pytest

from benchmarks.comparison import Run, check_agreement, compare, mean_of_tasks, mean_ratio
from engine.request import DraftFigures


def make_run(mode, index=0, task="math", *, token_ids=(1, 2, 3, 4), duration_s=1.0, **rest):
    return Run(
        mode=mode,
        concurrency=1,
        prompt_indices=(index,),
        tasks=(task,),
        token_ids=(token_ids,),
        duration_s=duration_s,
        first_token_s=0.1,
        **rest,
    )


def make_batch(mode, token_ids, *, tasks=("math", "qa"), duration_s=1.0):
    return Run(
        mode=mode,
        concurrency=2,
        prompt_indices=(0, 1),
        tasks=tasks,
        token_ids=token_ids,
        duration_s=duration_s,
        first_token_s=0.1,
    )


def make_figures(num_steps, num_drafted, accepted_by_layer):
    return DraftFigures(
        num_steps=num_steps,
        num_draft_tokens=num_drafted,
        num_accepted_tokens=sum(accepted_by_layer.values()),
        acceptance_histogram=(),
        accepted_by_layer=accepted_by_layer,
        drafted_by_layer={},
    )


def test_speed_is_all_tokens_over_all_time_not_a_mean_of_speeds():
    runs = [make_run("plain", 0, duration_s=1.0), make_run("plain", 1, duration_s=3.0)]

    (entry,) = compare(runs)

    assert entry.modes["plain"].tokens_per_s == 2.0


def test_ratios_compare_modes_on_the_same_prompts():
    runs = [make_run("plain", duration_s=3.0), make_run("early-exit", duration_s=2.0)]

    (entry,) = compare(runs)

    assert entry.ratio("early-exit", "plain") == pytest.approx(1.5)
    assert entry.ratio("plain", "transformers") is None


def test_tasks_come_apart_one_at_a_time_and_together_last():
    runs = [make_run("plain", 0, "math"), make_run("plain", 1, "qa")]
    runs.append(make_batch("plain", ((1,), (2,))))

    entries = [(entry.concurrency, entry.task) for entry in compare(runs)]

    assert entries == [(1, "math"), (1, "qa"), (1, "all"), (2, "all")]


def test_batches_of_one_task_have_figures_by_task():
    batches = [
        make_batch(mode, ((1,), (2,)), tasks=(task, task), duration_s=duration_s)
        for task, durations in (("math", (3.0, 2.0)), ("qa", (3.0, 1.2)))
        for mode, duration_s in zip(("plain", "early-exit"), durations, strict=True)
    ]
    entries = compare(batches)
    assert [entry.task for entry in entries] == ["math", "qa", "all"]
    assert entries[0].ratio("early-exit", "plain") == pytest.approx(1.5)
    assert mean_of_tasks(entries, "early-exit", "plain", 2) == pytest.approx(2.0)
    mixed = compare([*batches, make_batch("plain", ((1,), (2,)))])
    assert [entry.task for entry in mixed] == ["all"]
    assert mean_of_tasks(mixed, "early-exit", "plain", 2) is None


def test_drafts_add_up_over_requests():
    figures = [make_figures(4, 10, {3: 6}), make_figures(1, 2, {3: 1, 21: 1})]
    runs = [make_run("early-exit", i, figures=(one,)) for i, one in enumerate(figures)]

    (entry,) = compare(runs)

    assert entry.drafts.acceptance_rate == pytest.approx(8 / 12)
    assert entry.drafts.mean_acceptance_length == pytest.approx(1 + 8 / 5)
    assert entry.exit_share(3) == pytest.approx(7 / 8)
    assert entry.exit_share(21) == pytest.approx(1 / 8)


def test_nothing_drafted_has_no_rate():
    (entry,) = compare([make_run("early-exit", figures=(make_figures(0, 0, {}),))])

    assert entry.drafts.acceptance_rate is None
    assert entry.drafts.mean_acceptance_length is None


def test_a_changed_token_is_found_and_named():
    runs = [make_run("plain", i) for i in range(3)]
    runs += [make_run("early-exit", i) for i in range(2)]
    runs.append(make_run("early-exit", 2, token_ids=(1, 2, 3, 5)))

    plain, early_exit = check_agreement(runs)

    assert plain.is_complete
    assert (early_exit.num_equal, early_exit.num_compared) == (2, 3)
    assert early_exit.different == (2,)


def test_a_batch_must_not_change_plain_decoding():
    alone = [make_run("plain", 0, token_ids=(1,)), make_run("plain", 1, token_ids=(2,))]

    (agreement,) = check_agreement([make_batch("plain", ((1,), (3,))), *alone])

    assert agreement.different == (1,)


def test_without_plain_decoding_there_is_nothing_to_agree_with():
    assert check_agreement([make_run("transformers")]) == []


def test_the_mean_ratio_counts_every_prompt_alike():
    runs = [
        make_run("plain", 0, duration_s=1.0),
        make_run("early-exit", 0, duration_s=0.5),
        make_run("plain", 1, duration_s=10.0),
        make_run("early-exit", 1, duration_s=10.0),
        make_run("plain", 2, duration_s=7.0),
    ]
    assert mean_ratio(runs, "early-exit", "plain", 1) == 1.5
    assert mean_ratio(runs, "early-exit", "transformers", 1) is None
    assert mean_ratio(runs, "early-exit", "plain", 8) is None
