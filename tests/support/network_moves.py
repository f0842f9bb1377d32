"""Which networks a call moves to which device."""

import pytest
from torch import nn


def record_moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The class name and the arguments of every `nn.Module.to` from now on; filled while they happen."""
    moves, move = [], nn.Module.to

    def recorded(self, *where):
        moves.append((type(self).__name__, *where))
        return move(self, *where)

    monkeypatch.setattr(nn.Module, "to", recorded)
    return moves
