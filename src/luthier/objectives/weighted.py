"""Several objectives at once: w0 * loss0 + w1 * loss1 + ..., on the same rows and one forward pass."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from luthier import component
from luthier.component import ComponentConfig
from luthier.config.bounds import Weight
from luthier.config.combinations import shortly, weighted_sum
from luthier.config.documents import to_line
from luthier.config.problems import Problem, checked, handed_on
from luthier.errors import UserError
from luthier.objectives import Objective
from luthier.types import Conversation, Example, LossOut, MicroBatch, Plan, Policy, Preference, Renderer, Sample, Scores

__all__ = ["Weighted"]

SFT_WEIGHT = "sft_weight"
"""The key of objectives of pairs that adds the likelihood of the better answers."""
LIKELY_PAIRS = "{kind: orpo}"
"""One of pairs that has it in any case."""


class Term(ComponentConfig):
    """One objective, with the keys of its own beside its weight."""

    model_config = ConfigDict(extra="allow")

    weight: Weight = 1.0
    """What its loss is multiplied with."""


class Weighted(Objective):
    """The weighted sum of other objectives' losses; each term's own loss is recorded as `loss_KIND`."""

    class Config(ComponentConfig):
        kind: Literal["weighted"] = "weighted"
        terms: Annotated[tuple[Term, ...], Field(min_length=1)]
        """The objectives: a list of maps, each with `kind`, `weight` (default 1) and the keys of the kind's own, as
        `{kind: sft, weight: 0.7}`."""
        gradient_shares: bool = False
        """Whether each term's share of the gradient's norm is recorded, as `grad_share_KIND`. Costs a forward and a backward
        pass a term, at every `training.logging_steps` only: with two terms and at every step, a run takes three times as long."""

        @field_validator("terms")
        @classmethod
        def _known(cls, terms: tuple[Term, ...]) -> tuple[Term, ...]:
            kinds = [term.kind for term in terms]
            if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
                raise ValueError(f"each kind once; {', '.join(sorted(twice))} is there twice")
            if "weighted" in kinds:
                raise ValueError("terms that are not weighted sums themselves: write their terms into this list")
            filled = [_filled(index, term) for index, term in enumerate(terms)]
            if problems := [problem for _, found in filled for problem in found]:
                raise handed_on(problems)
            return tuple(term for term, _ in filled)

    is_sum = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.terms: dict[str, Any] = {}
        self.factors = {term.kind: term.weight for term in config.terms}
        for term in config.terms:
            cls = component.load("objectives", term.kind)
            self.terms[term.kind] = cls(cls.Config.model_validate(_own_keys(term)))
        self.encoder = self._encoder()
        self.takes = tuple(
            kind for kind in self.encoder.takes if all(kind in term.takes for term in self.terms.values())
        )
        if not self.takes:
            raise UserError(
                "objective.terms",
                f"{', '.join(self.terms)} do not learn from the same rows",
                "terms that take the same examples",
                self._of_the_same_rows(),
            )
        self._refuse_other_samples()
        self.roles, self.pieces = self.encoder.roles, self.encoder.pieces
        self.keeps_reference = any(term.keeps_reference for term in self.terms.values())
        self.mismatched = any(term.mismatched for term in self.terms.values())
        wants = {want for term in self.terms.values() for want in term.wants}
        if "divergence" in wants and any("divergence" not in term.wants for term in self.terms.values()):
            wants.add("logps")  # with a gradient, for the others
        self.wants = tuple(sorted(wants))
        self.teaching = next((term.teaching for term in self.terms.values() if term.teaching is not None), None)
        self.reads_together = any(term.reads_together for term in self.terms.values())
        self.by_likelihood = all(term.by_likelihood for term in self.terms.values())
        self._counts: dict[str, int] = {}
        """how many totals of the step each term asks for"""

    @property
    def _speaking(self) -> dict[str, Any]:
        """The terms that say something of the answers; the others take the samples as they come."""
        return {kind: term for kind, term in self.terms.items() if term.only_as_term is None} or self.terms

    def _encoder(self) -> Any:
        """The term that makes the samples: the one that learns from blocks, where there is one."""
        speaking = list(self._speaking.values())
        return next((term for term in speaking if term.pieces is not None), speaking[0])

    def _of_the_same_rows(self) -> str:
        """What is proposed where terms learn from different rows: those that learn from what the first does. Where one learns from pairs
        and another from conversations, the likelihood of the better answers is meant, which objectives of pairs have too.
        """
        kept = tuple(term for term in self.config.terms if set(self.terms[term.kind].takes) & set(self.encoder.takes))
        alone = weighted_sum(self.config.model_copy(update={"terms": kept}))
        speaking = [term for term in self.config.terms if term.kind in self._speaking]
        likely = [term for term in speaking if Conversation in self.terms[term.kind].takes]
        pairs = [term for term in speaking if self.terms[term.kind].takes == (Preference,)]
        if not likely or not pairs:
            return alone
        given = {key: value for key, value in shortly(pairs[0]).items() if key != "weight"}
        if SFT_WEIGHT in _own_keys(pairs[0]):
            share = _own_keys(pairs[0])[SFT_WEIGHT] + likely[0].weight / pairs[0].weight
            return f"objective={to_line(given | {SFT_WEIGHT: float(f'{share:.3g}')})} where rows are pairs; or {alone}"
        terms = list(dict.fromkeys([to_line(given), LIKELY_PAIRS]))
        return f"objective={{kind: weighted, terms: [{', '.join(terms)}]}} where rows are pairs; or {alone}"

    def _refuse_other_samples(self) -> None:
        """Raises UserError: a term would read samples of another kind than its own, as answers of different rows as a pair."""
        others = [kind for kind, term in self._speaking.items() if not _reads_samples_of(term, self.encoder)]
        if not others:
            return
        own = next(kind for kind, term in self.terms.items() if term is self.encoder)
        kept = tuple(term for term in self.config.terms if term.kind not in others)
        raise UserError(
            "objective.terms",
            f"{own} beside {', '.join(others)}: they do not make the same samples of a row",
            "terms that do, as one encoding serves all of them",
            weighted_sum(self.config.model_copy(update={"terms": kept})),
        )

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        found: list[Sample] = self.encoder.encode(example, index, renderer)
        return found

    def notes(self, plan: Plan) -> list[str]:
        return [note for term in self.terms.values() for note in term.notes(plan)]

    def weights(self, plan: Plan) -> dict[str, float]:
        """Of each term its own, as `KIND NAME`: two may mean different things by one name."""
        return {
            f"{kind} {name}": value for kind, term in self.terms.items() for name, value in term.weights(plan).items()
        }

    def survey(self, policy: Policy, batch: MicroBatch) -> list[float]:
        """What the terms count that need totals of the step, one after the other."""
        once = _Once(policy, self.wants)
        found: dict[str, list[float]] = {kind: term.survey(once, batch) for kind, term in self.terms.items()}
        self._counts = {kind: len(values) for kind, values in found.items()}
        return [value for values in found.values() for value in values]

    def begin_step(self, totals: list[float], plan: Plan) -> None:
        rest = iter(totals)
        for kind, count in self._counts.items():
            if count:
                self.terms[kind].begin_step(list(islice(rest, count)), plan)

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        once = _Once(policy, self.wants)
        outs = {kind: term.loss(once, batch) for kind, term in self.terms.items()}
        sums, metrics, reported = dict[str, Any](), dict[str, dict[str, Any]](), set[str]()
        for kind, out in outs.items():
            for name, part in out.sums.items():
                sums[f"{kind} {name}"] = self.factors[kind] * part
                metrics[f"{kind} {name}"] = {f"loss_{kind}": part.detach()}
            for name, values in out.metrics.items():
                new = {metric: value for metric, value in values.items() if metric not in reported}
                metrics.setdefault(f"{kind} {name}", {}).update(new)
            # What an earlier term has reported would be added up; within a term, parts of one figure are meant to be.
            reported |= {metric for values in out.metrics.values() for metric in values}
        documents = [
            None if out.documents is None else self.factors[kind] * out.documents for kind, out in outs.items()
        ]
        known = [part for part in documents if part is not None]
        return LossOut(sums, metrics, documents=sum(known[1:], known[0]) if len(known) == len(documents) else None)

    def first_step(self) -> dict[str, float]:
        """The losses of all terms; other figures of the first only, as one of the same name may be reported by a term before."""
        first = next(iter(self.terms))
        return {
            f"loss_{kind}" if name == "loss" else name: value
            for kind, term in self.terms.items()
            for name, value in term.first_step().items()
            if name == "loss" or kind == first
        }

    def parts(self) -> dict[str, WeightedTerm]:
        """Each term alone, with its factor, for its share of the gradient; none where the shares are not wanted."""
        return {kind: WeightedTerm(self, kind) for kind in self.terms} if self.config.gradient_shares else {}


class WeightedTerm:
    """One term of the sum, as an objective whose loss is the term's part of it."""

    def __init__(self, whole: Weighted, kind: str) -> None:
        self.kind, self.term, self.factor = kind, whole.terms[kind], whole.factors[kind]

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        sums = self.term.loss(policy, batch).sums
        return LossOut({f"{self.kind} {name}": self.factor * part for name, part in sums.items()})


class _Once:
    """A policy that runs once for all terms: with everything that any of them wants."""

    def __init__(self, policy: Policy, wants: tuple[str, ...]) -> None:
        self.policy, self.wants = policy, wants
        self.scores: Scores | None = None

    def __call__(self, batch: MicroBatch, want: tuple[str, ...] = (), head: bool = True) -> Scores:
        if not head or not set(want) <= set(self.wants):
            return self.policy(batch, want, head)
        if self.scores is None:
            self.scores = self.policy(batch, self.wants)
        return self.scores


def _reads_samples_of(term: Any, encoder: Any) -> bool:
    """Whether a term's samples are those that another makes: by the same function, or by one that refines the term's."""
    functions = [getattr(cls, "encode", None) for cls in type(encoder).__mro__]
    return type(term).encode in functions and term.roles == encoder.roles and term.pieces in (None, encoder.pieces)


def _own_keys(term: Term) -> dict[str, Any]:
    return {"kind": term.kind, **(term.model_extra or {})}


def _filled(index: int, term: Term) -> tuple[Term, list[Problem]]:
    """The term with the defaults of its kind filled in, and what is wrong with its kind or keys, placed in the list."""
    config, problems = checked("objectives", term.kind, _own_keys(term))
    if config is None:
        return term, [((index, *loc), *rest) for loc, *rest in problems]
    return Term(weight=term.weight, **config.model_dump()), []
