"""Seeds for requests that bring none: unpredictable, or repeatable with `--seed`."""

import random

_SEED_BITS = 63


class SeedSource:
    """Draws one seed after the other."""

    def __init__(self, server_seed: int | None) -> None:
        self._random: random.Random = (
            random.SystemRandom() if server_seed is None else random.Random(server_seed)
        )

    def draw(self) -> int:
        """Return the next seed, 0 to 2**63 - 1."""
        return self._random.getrandbits(_SEED_BITS)
