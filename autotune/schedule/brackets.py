"""Bracket tables of successive halving and Hyperband, in whole numbers only.

A logarithm in floating point loses a bracket: ``floor(log(243, 3))`` is 4. Powers are counted instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.errors import CampaignError


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """One round of successive halving.

    Attributes:
        s: How often its members are reduced; it has s + 1 rungs.
        eta: One in eta members of a rung goes on.
        rungs: Per rung (number of members, resource that they are trained to), from the first to the last.
    """

    s: int
    eta: int
    rungs: tuple[tuple[int, int], ...]

    @property
    def resources(self) -> tuple[int, ...]:
        """The resource of each rung; strictly increasing, the last one is the schedule's maximum."""
        return tuple(resource for _, resource in self.rungs)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The planned number of members of each rung."""
        return tuple(size for size, _ in self.rungs)

    def kept(self, rung: int, members: int) -> int:
        """Return how many of so many members of a rung go on to the next one: one in eta, at least one."""
        return min(self.rungs[rung + 1][0], max(1, members // self.eta)) if members else 0

    def cut(self, members: int) -> Bracket:
        """Return this bracket as it is when only so many members begin in it."""
        sizes = [min(members, self.rungs[0][0])]
        for rung in range(self.s):
            sizes.append(self.kept(rung, sizes[-1]))
        return Bracket(s=self.s, eta=self.eta, rungs=tuple(zip(sizes, self.resources, strict=True)))


def reductions(minimum: int, maximum: int, eta: int) -> int:
    """Return the largest s with ``minimum * eta**s <= maximum``.

    Args:
        minimum: The least resource that a trial gets before it is compared, 1 or more.
        maximum: The most, not below `minimum`.
        eta: One in eta members goes on, 2 or more.

    Raises:
        CampaignError: One of them is out of range.
    """
    if minimum < 1:
        raise CampaignError(f"schedule minimum {minimum} is below 1; give the fewest epochs after which trials compare")
    if maximum < minimum:
        raise CampaignError(f"schedule maximum {maximum} is below its minimum {minimum}; raise it or lower the minimum")
    if eta < 2:
        raise CampaignError(
            f"schedule eta {eta} is below 2; one in eta trials goes on, so give 2 or more, for example 3"
        )
    s, resource = 0, minimum * eta
    while resource <= maximum:
        s, resource = s + 1, resource * eta
    return s


def rung_resources(s: int, maximum: int, eta: int) -> tuple[int, ...]:
    """Return ``floor(maximum / eta**(s - i))`` for i = 0..s.

    Rounded down, so no rung lies below the schedule's minimum or costs more than in the paper; the last one is exactly
    the maximum. They increase strictly, for a floor of at least 1 at least doubles with its argument. A level has the
    same resource in every bracket.
    """
    return tuple(maximum // eta ** (s - i) for i in range(s + 1))


def hyperband_brackets(minimum: int, maximum: int, eta: int) -> tuple[Bracket, ...]:
    """Return the brackets of Hyperband in the order s = s_max, ..., 0 (Li et al. 2018, Algorithm 1).

    ``n = ceil((s_max + 1) / (s + 1) * eta**s)`` members begin, ``floor(n / eta**i)`` are in rung i.

    Args:
        minimum: The least resource that a trial gets before it is compared, 1 or more.
        maximum: The most, not below `minimum`.
        eta: One in eta members goes on, 2 or more.

    Raises:
        CampaignError: One of them is out of range.
    """
    s_max = reductions(minimum, maximum, eta)
    brackets = []
    for s in range(s_max, -1, -1):
        n = -((s_max + 1) * eta**s // -(s + 1))  # the quotient rounded up
        sizes = (n // eta**i for i in range(s + 1))
        brackets.append(Bracket(s=s, eta=eta, rungs=tuple(zip(sizes, rung_resources(s, maximum, eta), strict=True))))
    return tuple(brackets)


def asha_rungs(minimum: int, maximum: int, eta: int) -> tuple[int, ...]:
    """Return the resources of ASHA's rungs: those of Hyperband's largest bracket.

    Args:
        minimum: The least resource that a trial gets before it is compared, 1 or more.
        maximum: The most, not below `minimum`.
        eta: One in eta members goes on, 2 or more.

    Raises:
        CampaignError: One of them is out of range.
    """
    return rung_resources(reductions(minimum, maximum, eta), maximum, eta)
