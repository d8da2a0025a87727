"""Softmax over the items of one domain, from a sample of them.

An objective that predicts an item contrasts it with items of the *same* domain: with mixed
negatives a model learns to tell domains apart instead of items.
Shapes: N labels, K candidates of the softmax, D item width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt
from torch import Tensor, nn

from lcn.config import Config
from lcn.data.corpus import ItemCorpus
from lcn.objectives.base import View
from lcn.objectives.contrast import info_nce, item_key
from lcn.objectives.draw import pick
from lcn.objectives.stream import Stream
from lcn.schema import DOMAINS, Domain


class SoftmaxConfig(Config):
    """How many items a sampled softmax sees, per domain."""

    negatives: NonNegativeInt = 1024
    """Drawn uniformly from the domain's training items; a smaller domain is taken whole."""
    in_batch: NonNegativeInt = 1024
    """At most so many of the batch's events: as frequent as the items are popular."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items of one domain to score against, each once."""

    vector_KD: Float[Tensor, "K D"]
    key_K: Int[Tensor, " K"]
    """Equal to a label's key where the candidate is that label."""
    index_K: Int[Tensor, " K"]
    """Vocabulary index (first item field)."""
    log_chance_K: Float[Tensor, " K"]
    """Log of the probability that a draw of this size holds the item; 0 when all were taken."""


def draw_candidates(
    view: View, corpus: ItemCorpus, stream: Stream, domain: Domain, config: SoftmaxConfig
) -> Candidates:
    """Draw one domain's candidates: some uniformly from its items, some from the batch's events.

    The chance of an item to be among the batch's events is that of as many independent draws from
    the training events.
    """
    items = corpus.domains[domain]
    generator, device = view.generator, view.item_ID.device
    rate_uniform = 0.0
    uniform_N = items.address_V
    if len(items) > config.negatives:
        uniform_N = uniform_N[pick(config.negatives, len(items), generator)]
        rate_uniform = -config.negatives * float(torch.log1p(torch.tensor(-1.0 / len(items))))
    event_N = stream.item_UL[stream.of_domain(target=domain == "target")]
    drawn = min(config.in_batch, len(event_N))
    place_N = torch.randperm(len(event_N), generator=generator)[:drawn]
    batch_N = view.batch.address_I[event_N[place_N.to(device)]].cpu()
    address_K = torch.cat([uniform_N, batch_N]).unique()
    if len(items) <= config.negatives:
        log_chance_K = torch.zeros(len(address_K), dtype=torch.float64)
    else:
        rate_batch_K = -drawn * torch.log1p(-items.share(address_K))
        log_chance_K = torch.log(-torch.expm1(-(rate_uniform + rate_batch_K)))
    field_KF = corpus.fields(address_K).to(device)
    vector_KD = view.encode(field_KF)
    return Candidates(
        vector_KD, item_key(field_KF), field_KF[:, 0], log_chance_K.to(device, vector_KD.dtype)
    )


def sampled_softmax(
    logit_NK: Float[Tensor, "N K"],
    positive_N: Float[Tensor, " N"],
    key_N: Int[Tensor, " N"],
    candidates: Candidates,
) -> Float[Tensor, " N"]:
    """-log softmax of labels, the partition sum estimated from candidates.

    Z ≈ e^positive + Σ_{k ≠ label} e^logit_k / P(k drawn): unbiased as far as a batch's events are
    independent draws from the log, and exact where every item of the domain is a candidate. A
    candidate that is the label itself is removed.

    Args:
        logit_NK: scores of the candidates, uncorrected.
        positive_N: scores of the labels.
        key_N: keys of the labels.
        candidates: of the labels' domain.
    """
    allowed_NK = key_N[:, None] != candidates.key_K
    return info_nce(logit_NK - candidates.log_chance_K, allowed_NK, positive_N)


def next_item_loss(
    view: View,
    query_ND: Float[Tensor, "N D"],
    label_N: Int[Tensor, " N"],
    target_N: Tensor,
    drawn: dict[Domain, Candidates],
    bias: nn.Embedding | None = None,
) -> Float[Tensor, " N"]:
    """Sampled softmax of each label against candidates of its own domain.

    logit = <query, item> + bias of the item.

    Args:
        view: the step.
        query_ND: predictions, W_out applied.
        label_N: the labels' positions on the batch's item axis.
        target_N: whether a label is of the target domain.
        drawn: candidates of every domain that has labels.
        bias: one number per vocabulary index; None leaves it out.
    """
    field_NF = view.batch.item_IF[label_N]
    vector_ND, key_N = view.item_ID[label_N], item_key(field_NF)
    loss_N = query_ND.new_zeros(len(query_ND))
    for domain in DOMAINS:
        at_M = (target_N == (domain == "target")).nonzero()[:, 0]
        if not len(at_M):
            continue
        query_MD = query_ND[at_M]
        logit_MK = query_MD @ drawn[domain].vector_KD.T
        positive_M = (query_MD * vector_ND[at_M]).sum(1)
        if bias is not None:
            logit_MK = logit_MK + bias(drawn[domain].index_K)[:, 0]
            positive_M = positive_M + bias(field_NF[at_M, 0].long())[:, 0]
        loss_M = sampled_softmax(logit_MK, positive_M, key_N[at_M], drawn[domain])
        loss_N = loss_N.index_put((at_M,), loss_M)
    return loss_N


def draw_domains(
    view: View, corpus: ItemCorpus, stream: Stream, config: SoftmaxConfig
) -> dict[Domain, Candidates]:
    """Candidates of every domain that occurs in the stream."""
    return {
        domain: draw_candidates(view, corpus, stream, domain, config)
        for domain in DOMAINS
        if bool(stream.of_domain(target=domain == "target").any())
    }
