"""The balance of a mixture's experts: a loss that is least where each gets the same share of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from luthier.component import ComponentConfig
from luthier.objectives._trained_tokens import TOKENS, TrainedTokens
from luthier.types import LossOut, MicroBatch, Plan, Policy, Routing

if TYPE_CHECKING:  # a configuration is read, and explained, without torch
    import torch

__all__ = ["RouterBalance"]


class RouterBalance(TrainedTokens):
    """loss = sum over documents of n * balance; weight = number of trained tokens, n of them in a document.

    balance = mean over routers of E * sum over their E experts of f_i * P_i, with f_i how often expert i was chosen a token
    (0 to 1; all together K), and P_i the mean of its probability, softmax of the logits. Even shares give K, the number of
    experts of a token. These are the scale and, for one router, the numbers of transformers' own loss (Fedus et al., 2022,
    arXiv:2101.03961, equations 4 to 6), so a `router_aux_loss_coef` of a model's config.json is a weight of this term. With
    several routers that loss averages f and P over layers before it multiplies, so that one layer's favourite would hide
    another's; here each router answers for itself. All tokens of documents count, those of prompts too, and no padding.

    f * P is a product of two means. Taken over a micro-batch, as other programs do, it depends on how a batch is split.
    Two forms of it do not:

    - over each document: P and f are those of the document, as DeepSeek-V3 has it within a sequence (arXiv:2412.19437,
      section 2.1.2). A sum over documents is the same under every split. It asks that each text be spread over the experts.
    - over the step: f is counted over the whole global batch first, in a pass without gradient (f has none anyway), and
      the loss is then linear in the tokens: n * E * sum_i f_i p_i, with n the trained tokens of the step by its tokens. It is
      transformers' loss of the step as one micro-batch, leaves experts free to have their subjects (Qiu et al., 2025,
      arXiv:2501.11873), and costs one forward pass more.

    It says nothing of the answers: a term of `weighted`. LoRA leaves routers alone; what is learned then is to bring them
    hidden states that they spread.
    """

    class Config(ComponentConfig):
        kind: Literal["router_balance"] = "router_balance"
        over: Literal["document", "step"] = "document"
        """Over what experts are to be used evenly: each `document`, or the whole `step`, which costs one more forward pass."""

    config: Config
    only_as_term = 0.01
    """the weight of Fedus et al."""
    wants = ("routing",)

    @classmethod
    def of_model(cls, model_config: Any) -> tuple[str, dict[str, Any]] | None:
        """A model adds it only where it is asked for its routers' logits."""
        weight = getattr(model_config, "router_aux_loss_coef", 0.0)
        if not weight or not getattr(model_config, "output_router_logits", False):
            return None
        return "router_aux_loss_coef", {"kind": "router_balance", "over": "step", "weight": weight}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.over_step = config.over == "step"
        self.often: list[torch.Tensor] = []
        """of each router: f [E] of the step"""
        self.weight_of_a_token = 0.0
        """trained tokens of the step by all its tokens"""
        self._experts: list[int] = []

    def survey(self, policy: Policy, batch: MicroBatch) -> list[float]:
        """How often each expert of each router is chosen in a micro-batch, router after router; over documents, nothing."""
        if not self.over_step:
            return []
        import torch

        routing = policy(batch, want=self.wants, head=False).routing
        assert routing is not None
        counts = [_taken(*said).sum(0) for said in zip(routing.logits, routing.chosen, strict=True)]
        self._experts = [len(count) for count in counts]
        real = float(bool(batch.row_ids))  # an empty micro-batch has one token, of no document
        return [real * count for count in torch.cat(counts).tolist()]

    def begin_step(self, totals: list[float], plan: Plan) -> None:
        """From the counts of the whole step to its shares."""
        import torch

        tokens = float(plan.lengths.sum())
        shares = torch.tensor(totals, dtype=torch.float64).div(tokens).float()
        self.often = list(torch.split(shares, self._experts))
        self.weight_of_a_token = plan.tokens / tokens

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        import torch

        scores = policy(batch, want=self.wants)
        assert scores.routing is not None
        trained = batch.by_document(torch.ones_like(scores.logps)).to(scores.logps)
        if self.over_step:
            real = float(bool(batch.row_ids))
            weights = real * self.weight_of_a_token * torch.tensor(batch.lengths).to(trained)
        else:
            weights = trained
        documents = weights * self._balance(scores.routing, batch.lengths)
        # Every trained weight must get a gradient, if of zero, also those behind the last router: processes wait for it.
        return LossOut(
            {TOKENS: documents.sum() + 0.0 * scores.logps.sum()}, documents=documents.detach().cpu().double()
        )

    def _balance(self, routing: Routing, lengths: list[int]) -> torch.Tensor:
        """Of each document, [S]."""
        import torch

        found = []
        for number, (logits, chosen) in enumerate(zip(routing.logits, routing.chosen, strict=True)):
            probable = _means(logits.softmax(-1), lengths)
            often = self.often[number].to(logits) if self.over_step else _means(_taken(logits, chosen), lengths)
            found.append(logits.shape[-1] * (often * probable).sum(-1))
        return torch.stack(found).mean(0)


def _taken(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """logits [M, E], chosen [M, K] -> [M, E]: 1 where a token goes to an expert, else 0."""
    return logits.new_zeros(logits.shape).scatter_(-1, chosen, 1.0)


def _means(values: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """[M, E] -> [S, E]: the mean over each document. One by one: so its bits do not depend on its neighbours."""
    import torch

    return torch.stack([part.mean(0) for part in torch.split(values, lengths)])
