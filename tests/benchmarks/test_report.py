import json

from benchmarks.comparison import Agreement, Run, check_agreement, compare
from benchmarks.report import (
    agreement_to_json,
    format_agreements,
    format_comparisons,
    format_means,
    mean_ratios,
    to_json,
)
from engine.request import DraftFigures

FIGURES = DraftFigures(
    num_steps=2,
    num_draft_tokens=4,
    num_accepted_tokens=2,
    acceptance_histogram=(0, 2),
    accepted_by_layer={3: 2},
    drafted_by_layer={3: 4},
)


def make_runs(early_ids=(1, 2, 3, 4)):
    def make_run(mode, duration_s, token_ids=(1, 2, 3, 4), figures=()):
        return Run(
            mode=mode,
            concurrency=1,
            prompt_indices=(7,),
            tasks=("math",),
            token_ids=(token_ids,),
            duration_s=duration_s,
            first_token_s=0.5,
            figures=figures,
        )

    return [
        make_run("transformers", 4.0),
        make_run("plain", 2.0),
        make_run("early-exit", 1.0, early_ids, (FIGURES,)),
    ]


def test_the_table():
    title, header, row = format_comparisons(compare(make_runs())).splitlines()

    assert title.startswith("one prompt at a time")
    assert header.split() == [
        *("task", "prompts", "plain", "early-exit", "transformers"),
        *("early-exit/plain", "plain/transformers", "early-exit/transformers"),
        *("accepted", "length", "exits", "by", "layer"),
    ]
    assert row.split() == [
        *("math", "1", "2.0", "4.0", "1.0", "2.00x", "2.00x", "4.00x", "50%", "2.00", "3:", "50%")
    ]


def test_means_say_of_what():
    runs = make_runs()
    lines = format_means(mean_ratios(compare(runs), runs)).splitlines()
    ratios = "early-exit/plain 2.00x, plain/transformers 2.00x, early-exit/transformers 4.00x"
    assert lines == [
        f"mean of tasks, 1 at once: {ratios}",
        f"mean of single ratios, 1 at once: {ratios}",
    ]


def test_a_changed_output_is_named():
    text = format_agreements(check_agreement(make_runs((1, 2, 3, 5))), is_greedy=True)

    assert "early-exit = plain: 0 of 1 (prompts 7 differ)" in text
    assert "transformers = plain: 1 of 1" in text


def test_sampled_output_of_transformers_is_not_compared():
    agreement = Agreement(
        mode="transformers", reference="plain", num_equal=0, num_compared=1, different=(7,)
    )

    assert "not comparable" in format_agreements([agreement], is_greedy=False)


def test_json_holds_what_the_table_shows():
    (entry,) = compare(make_runs())

    content = json.loads(json.dumps(to_json(entry)))

    assert content["ratios"]["early-exit/plain"] == 2.0
    assert content["modes"]["plain"]["tokens_per_s"] == 2.0
    assert content["drafts"]["accepted_by_layer"] == {"3": 2}
    assert agreement_to_json(check_agreement(make_runs())[0])["num_equal"] == 1
