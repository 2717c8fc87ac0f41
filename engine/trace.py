"""Provenance of emitted tokens, from a step's drafts and their verdicts."""

from engine.plan import RowResult
from engine.request import TokenTrace


def token_traces(result: RowResult, num_kept: int, num_layers: int) -> list[TokenTrace]:
    """Return one entry per emitted token: accepted drafts, then the last layer's own token.

    Rejected drafts are listed with the token that replaced the first of them; rejected second
    candidates for earlier places are in no trace.

    Args:
        result: What the row produced in the step.
        num_kept: How many of its tokens were emitted.
        num_layers: The model's, as the exit layer of tokens that were no drafts.
    """
    accepted = [draft for draft in result.drafts if draft.accepted]
    traces = [
        TokenTrace(
            token_id=draft.token_id, exit_layer=draft.exit_layer, confidence=draft.confidence
        )
        for draft in accepted
    ]
    if len(result.token_ids) > len(accepted):
        traces.append(
            TokenTrace(
                token_id=result.token_ids[len(accepted)],
                exit_layer=num_layers,
                confidence=None,
                rejected=tuple(
                    draft
                    for draft in result.drafts
                    if not draft.accepted and draft.place >= len(accepted)
                ),
            )
        )
    return traces[:num_kept]
