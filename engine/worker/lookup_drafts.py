"""What a row's own text says will follow, as drafts with their chances."""

from functools import partial

from engine.model.noise import gumbel_of
from engine.worker.chances import Chances
from engine.worker.row import Draft, Guess, Row
from engine.worker.sample_point import SamplePoint

_LEAST_SURVIVAL = 0.05  # of a draft; what follows is not looked at


class LookupDrafts:
    """Makes them; what becomes of them is for others to say."""

    def __init__(self, chances: Chances) -> None:
        self._chances = chances

    def behind(self, row: Row) -> list[Draft]:
        """Drafts that may follow what is pending, as long as there is any hope for them."""
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
