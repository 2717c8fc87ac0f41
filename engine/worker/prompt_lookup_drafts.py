"""Turns what a row's own text suggests will follow into drafts with acceptance probabilities."""

from functools import partial

from engine.model.noise import gumbel_of
from engine.worker.chances import Chances
from engine.worker.row import Draft, Guess, Row
from engine.worker.sample_point import SamplePoint

_LEAST_SURVIVAL = 0.05  # a draft less likely to be accepted ends the run


class PromptLookupDrafts:
    """Makes look-up drafts; the caller decides which of them to use."""

    def __init__(self, chances: Chances) -> None:
        self._chances = chances

    def after_pending(self, row: Row) -> list[Draft]:
        """Return drafts that may follow the pending tokens, and note them as the row's guesses.

        They end with the first unlikely draft or the end of the sequence.
        """
        start, ids = row.state.start, row.draft_ids
        position = len(row.state.token_ids) + len(ids)
        noise = None
        if not row.state.is_greedy:
            noise = partial(gumbel_of, row.state.noise_key(position))
        found = row.state.lookup.find(ids, row.num_room, noise)
        if found is None:
            return []
        drafts: list[Draft] = []
        survival = row.survival
        for offset, token_id in enumerate(found.token_ids):
            path = (*ids, *found.token_ids[:offset])
            if not SamplePoint(row.state, path).allows(token_id):
                break
            luck = None
            if not row.state.is_greedy:
                luck = gumbel_of(row.state.noise_key(position + offset), token_id)
            chance = self._chances.looked_up(found, offset, row.state.lookup.recent, luck)
            survival *= chance.probability
            row.guesses.append(Guess(path, token_id, chance))
            drafts.append(Draft(token_id, None, chance.probability, survival, chance))
            if survival < _LEAST_SURVIVAL or token_id in start.stop_token_ids:
                break
        return drafts
