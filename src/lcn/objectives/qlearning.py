"""What SQN and SAC share: next-event prediction and double Q-learning on one encoder.

A state is the stream up to an event, the action is the next event's item, the reward says what
kind of event it was. Shapes: U users, L places of a stream, N transitions, K candidate items,
D item width, V values of a context field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt
from torch import Tensor, nn

from lcn.config import Config, Share
from lcn.data.batch import Batch
from lcn.data.source_clicks import response_labels
from lcn.errors import ConfigError
from lcn.objectives.base import Setup, View
from lcn.objectives.draw import coins
from lcn.objectives.encoder import EncoderConfig, StreamEncoder
from lcn.objectives.kinds import index_of, read_values
from lcn.objectives.sampled import SoftmaxConfig, draw_domains, next_item_loss
from lcn.objectives.stream import Stream, StreamConfig, merge_stream, next_places


class RewardConfig(Config):
    """What an event is worth."""

    source: float = 0.2
    """Reward of a source-domain event whose kind is not in `values`."""
    target: float = 1.0
    """Reward of a target-domain event whose kind is not in `values`."""
    field: str = ""
    """Event context field that tells the kind of an event; empty: the domain alone decides."""
    values: dict[str, float] = {}
    """Reward of each kind, by its value in that field: {pv: 0.2, cart: 0.5, fav: 0.5, buy: 1}."""
    by_response: bool = False
    """Without a field: where the dataset's mapping tells responses, an event that was only shown
    is worth nothing. The recipes have it on."""


class QConfig(Config):
    """What SQN and SAC share."""

    discount: Share = 0.5
    """γ."""
    predictions: NonNegativeInt = 10
    """Transitions per user and step, drawn at random; 0 takes all."""
    rewards: RewardConfig = RewardConfig()
    stream: StreamConfig = StreamConfig()
    encoder: EncoderConfig = EncoderConfig()
    softmax: SoftmaxConfig = SoftmaxConfig()


@dataclass(frozen=True, slots=True)
class QTerms:
    """Losses of transitions."""

    supervised_N: Float[Tensor, " N"]
    """L_s: sampled softmax of the action."""
    value_N: Float[Tensor, " N"]
    """Q(s, a) of the head that learns in this step."""
    temporal_N: Float[Tensor, " N"]
    """L_q: half the squared error of Q(s, a) against the double Q target."""


class QLearner(nn.Module):
    """One encoder, a supervised head and two Q heads, all tied to the item table.

    Scores of items are <h W, item>, so a million items cost no parameters; the maximum of the Q
    target is taken over the step's candidate items. In each step one Q head, at random, learns,
    and the other evaluates the action that the first one prefers.
    """

    def __init__(self, config: QConfig, setup: Setup) -> None:
        super().__init__()
        self.config, self.corpus = config, setup.corpus
        width = setup.item_width
        self.encoder = StreamEncoder(width, config.stream.length, config.encoder, causal=True)
        self.supervised = nn.Linear(width, width, bias=False)
        self.values = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.value_bias_2 = nn.Parameter(torch.zeros(2))
        self.reward_field, reward_2V = read_rewards(config.rewards, setup)
        self.reward_2V: Tensor
        self.register_buffer("reward_2V", reward_2V, persistent=False)

    def forward(self, view: View) -> QTerms | None:
        """The losses of a step's transitions; None when there is no transition."""
        config = self.config
        stream = merge_stream(view.batch, view.latest_candidates(), config.stream, view.generator)
        user_N, place_N = next_places(stream, config.predictions, view.generator)
        if not len(user_N):
            return None
        hidden_ULD = self.encoder(view.item_ID, stream)
        state_ND, next_ND = hidden_ULD[user_N, place_N], hidden_ULD[user_N, place_N + 1]
        action_N = stream.item_UL[user_N, place_N + 1]
        drawn = draw_domains(view, self.corpus, stream, config.softmax)
        supervised_N = next_item_loss(
            view,
            self.supervised(state_ND),
            action_N,
            stream.target_UL[user_N, place_N + 1],
            drawn,
        )
        main = int(coins(1, 0.5, view.generator, action_N))
        value_N = (self.values[main](state_ND) * view.item_ID[action_N]).sum(1)
        value_N = value_N + self.value_bias_2[main]
        with torch.no_grad():
            item_KD = torch.cat([candidates.vector_KD for candidates in drawn.values()])
            scores = [head(next_ND) @ item_KD.T for head in self.values]
            scores = [
                score_NK + bias for score_NK, bias in zip(scores, self.value_bias_2, strict=True)
            ]
            target_N = double_q_target(
                self._rewards(view.batch, stream)[user_N, place_N + 1],
                place_N + 1 == stream.length_U[user_N] - 1,
                scores[main],
                scores[1 - main],
                config.discount,
            )
        return QTerms(supervised_N, value_N, 0.5 * (target_N - value_N).square())

    def _rewards(self, batch: Batch, stream: Stream) -> Float[Tensor, "U L"]:
        reward_UL = torch.zeros_like(stream.item_UL, dtype=self.reward_2V.dtype)
        for target, rows in ((False, batch.source), (True, batch.target)):
            own_UL = stream.of_domain(target=target)
            row_N = stream.row_UL[own_UL]
            if self.reward_field < 0:
                value_N = torch.zeros_like(row_N)
            else:
                value_N = rows.context_TG[row_N, self.reward_field].long()
            reward_UL[own_UL] = self.reward_2V[int(target), value_N]
        return reward_UL


def double_q_target(
    reward_N: Float[Tensor, " N"],
    done_N: Bool[Tensor, " N"],
    main_NK: Float[Tensor, "N K"],
    other_NK: Float[Tensor, "N K"],
    discount: float,
) -> Float[Tensor, " N"]:
    """y = r + γ Q'(s', argmax_a Q(s', a)), and y = r after the last event. No gradient.

    Args:
        reward_N: r.
        done_N: whether the window ends with the action.
        main_NK: Q(s', ·) over candidate items, of the head that learns.
        other_NK: Q'(s', ·), of the other head.
        discount: γ.
    """
    best_N1 = main_NK.detach().argmax(1, keepdim=True)
    future_N = other_NK.detach().gather(1, best_N1)[:, 0]
    return reward_N + discount * torch.where(done_N, 0.0, future_N)


def read_rewards(config: RewardConfig, setup: Setup) -> tuple[int, Float[Tensor, "2 V"]]:
    """Resolve rewards to a table: [domain, index of the kind]; the field's position, -1 if none.

    Raises:
        ConfigError: no such field, or a value that its vocabulary does not have.
    """
    default_21 = torch.tensor([[config.source], [config.target]])
    if not config.field:
        if config.values:
            raise ConfigError("rewards.values needs rewards.field: which field has these values?")
        told = response_labels(setup.dataset) if config.by_response else None
        if told is None:
            return -1, default_21
        position, label_V = told
        return position, default_21 * torch.from_numpy(label_V != 0).float()
    if config.by_response:
        raise ConfigError(
            f"rewards.field ({config.field}) says what events are worth, and so does "
            "rewards.by_response; give one of them"
        )
    position, index = read_values(setup, config.field, "rewards")
    reward_2V = default_21.repeat(1, setup.manifest.event_context[position].size)
    for value, reward in config.values.items():
        reward_2V[:, index_of(index, config.field, value, "rewards")] = reward
    return position, reward_2V
