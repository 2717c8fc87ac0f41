"""Recorded greedy texts, which `replay` decodes once more."""

from collections.abc import Sequence
from dataclasses import fields

import torch

from training.collect import ShardPaths
from training.generations import Generation
from training.states import LAST, HiddenStates, read_shards


class GreedyTexts:
    """The greedy ones among some generations, with their states; all if none is greedy."""

    def __init__(self, rows: Sequence[Generation], paths: ShardPaths) -> None:
        """
        Args:
            rows: The generations.
            paths: The shards of exactly these generations.
        """
        self._paths = paths
        is_greedy = [row.temperature == 0.0 for row in rows]
        self._kept = torch.tensor(is_greedy if any(is_greedy) else [True] * len(rows))
        self.states = self.at(min(layer for layer in paths[0] if isinstance(layer, int)))

    def at(self, layer: int) -> HiddenStates:
        """Return the texts' states at an exit layer and at the last layer."""
        states = read_shards([(shard[LAST], shard[layer]) for shard in self._paths])
        kept = self._kept[states.is_first.long().cumsum(0) - 1]
        names = [field.name for field in fields(HiddenStates)]
        return HiddenStates(**{name: getattr(states, name)[kept] for name in names})
