"""Which networks of a model are compiled, where `compile` asks for it."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

COMPILED = 256
"""Compiled forms of all networks of a model together: a form for each shape of batch, and for scoring."""


def compilable(players: Mapping[str, Sequence[nn.Module]]) -> Iterator[nn.Module]:
    """Give the outermost sequences of layers of all players, once each; where there are none, the players' own modules.

    Compiled is what happens at a module's call, and not all networks are called as a whole.
    """
    seen: set[nn.Module] = set()
    for modules in players.values():
        for module in modules:
            for part in list(_sequences(module)) or [module]:
                if part not in seen:
                    seen.add(part)
                    yield part


def _sequences(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        yield module
        return
    for child in module.children():
        yield from _sequences(child)
