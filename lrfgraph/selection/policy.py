"""What a policy is: one row of POLICIES says how it decides, what it needs and which options are its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.front import Budgets, Front
from lrfgraph.selection.problem import Decision, Problem

__all__ = ["Policy"]


@dataclass(frozen=True)
class Policy:
    """A rule that takes one candidate, or none, for each layer.

    decide : from what is known of all candidates.  search : from measurements, budget by budget, instead.
    needs : what has to be there before: ``curvature`` (predicted losses), ``noise`` (ranks that stand out from noise),
        ``images`` (something to measure on).  without_images : the policy that decides in its place where there are
        none.
    options : those of ``[select]`` that it reads; nothing else enters the key of its decision.
    implied_by : options that ask for it where nobody names a policy.
    compares : whether it decides by the similarities that ``[similarity]`` is about.
    public : whether users may name it; one that they may not is in force wherever an option implies it.
    refines : whether probes may scale the predictions it stands on (``select.probes``), and exchanges between layers
        better its decision (``select.refine``).
    trials : whether it tries how much a fine-tuning brings back, where there is going to be one.
    """

    name: str
    decide: Callable[[Problem, SelectOptions], Decision] | None = None
    search: Callable[[Budgets, SelectOptions], Front] | None = None
    needs: frozenset[str] = frozenset()
    without_images: str = ""
    options: tuple[str, ...] = ()
    implied_by: tuple[str, ...] = ()
    compares: bool = False
    public: bool = True
    refines: bool = False
    trials: bool = False

    @property
    def relevant(self) -> frozenset[str]:
        """All options of ``[select]`` that have an effect under it."""
        return frozenset({*self.options, *self.implied_by, *(("probes", "refine") if self.refines else ())})

    @property
    def help(self) -> str:
        """What it takes, in a line."""
        rule = self.decide or self.search
        return (rule.__doc__ or "").strip().splitlines()[0]
