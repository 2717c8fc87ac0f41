"""The policy's reason, as reported for one request."""

import pytest

from engine.policy_reason import PolicyReason, PolicyReport
from engine.request import EarlyExitOptions

PROBING = PolicyReport(PolicyReason.PROBING, speedup=1.1, looks=(0.25, 0.1))


@pytest.mark.parametrize(
    ("options", "policy", "reason"),
    [
        (EarlyExitOptions(), PROBING, PolicyReason.PROBING),
        (EarlyExitOptions(enabled=False), PROBING, PolicyReason.OFF_BY_REQUEST),
        (EarlyExitOptions(max_draft_tokens=0), PROBING, PolicyReason.OFF_BY_REQUEST),
        (EarlyExitOptions(threshold=0.5), PROBING, PolicyReason.FIXED_THRESHOLD),
        (EarlyExitOptions(threshold=0.5), PolicyReport(), PolicyReason.OFF),
    ],
)
def test_a_request_may_decide_for_itself(options, policy, reason):
    assert options.under(policy).reason is reason


def test_every_reason_says_whether_it_drafts_and_why():
    drafting = {reason for reason in PolicyReason if PolicyReport(reason=reason).is_drafting}

    assert drafting == {PolicyReason.DRAFTING, PolicyReason.PROBING, PolicyReason.FIXED_THRESHOLD}
    assert len({reason.text for reason in PolicyReason}) == len(PolicyReason)
    figures = "1.10x plain over recent steps; evaluating an exit gains 0.25, 0.10 tokens"
    assert PROBING.text == f"{PolicyReason.PROBING.text}; {figures}"
    paused = PolicyReport(PolicyReason.COSTS_MORE, pause=32)
    assert paused.text == f"{PolicyReason.COSTS_MORE.text}; tries again in 32 steps"
    assert PolicyReport().text == PolicyReason.OFF.text
