"""What an exit head expects under a row's own noise: `Ops.expect` in plain torch.

Backends that compute it in a way of their own are tested against it.
"""

import torch
from torch import Tensor

from engine.model.noise import DRAFT_WEIGHT, MEAN_GUMBEL, SaltedIds, salted_gumbel


def expect(
    logits: Tensor,
    other: Tensor,
    temperatures: Tensor,
    keys: Tensor | None,
    ids: SaltedIds,
    followers: Tensor,
) -> Tensor:
    """See `Ops.expect`."""
    if keys is not None:
        temperatures = temperatures[:, None]
        is_sampled = temperatures > 0
        divisor = torch.where(is_sampled, temperatures, 1.0)
        weight = DRAFT_WEIGHT * is_sampled
        logits = logits / divisor + salted_gumbel(keys, ids.salts) * weight
        other = other / divisor + MEAN_GUMBEL * weight
    shares = torch.cat((logits, other), dim=1).log_softmax(-1)
    best = shares.max(-1)
    second = shares.scatter(1, best.indices[:, None], float("-inf")).max(-1)
    follower = shares.gather(1, followers[:, None])[:, 0]
    facts = (best.indices, best.values, follower, second.indices, second.values)
    return torch.stack([fact.double() for fact in facts], dim=1)
