"""The planted truth of synthetic logs: items, users' interests, behaviours and clicks.

Items of both domains lie in one latent space, around category centres. A user's interests are
points in it (prototypes). A click does not come from a dot product of user and item: the
candidate's distances to all prototypes of the moment go through a kernel, are summed, gated by
category, saturate, and are dampened by repeated showing of a category; see `click_logit`.

Users are drawn in blocks of fixed size, each from its own random stream, so no row depends on how
many users there are, how they are cut into files, or how many processes work.

Axes: U users of a block, J interests, P phases (before, after a drift), Z latent, C categories,
I items, and flat rows: T behaviours, M impressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from lcn.data.sources.synthetic_config import SyntheticConfig

BLOCK = 256
"""Users drawn from one random stream."""
LATENT = 8
_DAY_MS = 86_400_000
_SCATTER = 0.25
"""Spread of items and prototypes around their category's centre (centres have spread 1)."""
_REACH = 1.2
"""Distance at which the kernel falls to exp(-1/2)."""

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Catalogue:
    """Items of one domain; item i has category i mod C and popularity rank i div C in it."""

    size: int
    category_I: Ints
    latent_IZ: Floats
    appeal_I: Floats
    """What every user finds in an item, in logits."""
    rank_share: Floats
    """Cumulative popularity of the ranks within a category."""


@dataclass(frozen=True)
class World:
    """What all users share."""

    centre_CZ: Floats
    category_share: Floats
    """Cumulative popularity of categories."""
    source: Catalogue
    target: Catalogue


@dataclass(frozen=True)
class Interests:
    """Prototypes of a block's users, before and after each one's drift."""

    category_UJP: Ints
    latent_UJPZ: Floats
    weight_UJP: Floats
    switch_UJ: Floats
    """When the second phase begins (ms after the start); infinite without drift."""

    def phase(self, user: Ints, interest: Ints, time: Floats) -> Ints:
        """Which phase an interest of a user is in at a time."""
        return (time >= self.switch_UJ[user, interest]).astype(np.int64)


@dataclass(frozen=True)
class Events:
    """Behaviours of a block, sorted by user and time; `user` counts within the block."""

    user: Ints
    item: Ints
    time: Ints
    stay: Floats


@dataclass(frozen=True)
class Shown:
    """Impressions of a block, sorted by user and time."""

    user: Ints
    item: Ints
    time: Ints
    probability: Floats
    click: NDArray[np.bool_]
    stay: Floats
    """Seconds for clicks, NaN otherwise."""


@dataclass(frozen=True)
class Block:
    """All rows of one block of users."""

    source: Events
    target: Events
    shown: Shown
    segment_U: Ints
    region_U: Ints


def draw_world(config: SyntheticConfig) -> World:
    """Draw categories and items."""
    rng = default_rng(SeedSequence(config.seed, spawn_key=(0,)))
    centre_CZ = rng.normal(size=(config.categories, LATENT))
    share = np.arange(1, config.categories + 1) ** (-config.popularity_skew / 2)
    share = rng.permutation(share)
    source = _draw_catalogue(rng, config, centre_CZ, config.source_items)
    target = _draw_catalogue(rng, config, centre_CZ, config.target_items)
    shared_I = shared_items(config)
    target.latent_IZ[shared_I] = source.latent_IZ[: config.target_items][shared_I]
    return World(centre_CZ, np.cumsum(share / share.sum()), source, target)


def shared_items(config: SyntheticConfig) -> NDArray[np.bool_]:
    """[I] whether a target item is also the source item of the same number.

    Spread evenly over the numbers, and so over categories and popularity; more sharing only adds.
    """
    place_I = np.arange(config.target_items) * 0.6180339887498949 % 1.0
    return place_I < config.shared_items


def _draw_catalogue(
    rng: Generator, config: SyntheticConfig, centre_CZ: Floats, size: int
) -> Catalogue:
    category_I = np.arange(size) % config.categories
    spread_IZ = rng.normal(scale=_SCATTER, size=(size, LATENT))
    ranks = -(-size // config.categories)
    popularity = np.arange(1, ranks + 1) ** -config.popularity_skew
    return Catalogue(
        size=size,
        category_I=category_I,
        latent_IZ=(centre_CZ[category_I] + spread_IZ).astype(np.float32),
        appeal_I=rng.normal(scale=0.25, size=size),
        rank_share=np.cumsum(popularity / popularity.sum()),
    )


def draw_block(config: SyntheticConfig, world: World, block: int) -> Block:
    """Draw all rows of one block of users, from the block's own random stream."""
    streams = SeedSequence(config.seed, spawn_key=(1, block)).spawn(5)
    who, source_rng, target_rng, shown_rng, profile_rng = map(default_rng, streams)
    shared = _draw_interests(who, config, world, config.interests)
    private = _draw_interests(who, config, world, config.interests)
    only_source = _draw_interests(who, config, world, config.private_interests)
    is_shared_UJ = who.random((BLOCK, config.interests)) < config.rho
    in_target = _choose(is_shared_UJ, shared, private)
    in_source = _join(shared, only_source)
    mood_U = who.normal(scale=0.3, size=BLOCK)
    shown = _draw_shown(shown_rng, config, world, in_target, mood_U)
    segment = np.digitize(mood_U + profile_rng.normal(scale=0.3, size=BLOCK), [-0.3, 0.0, 0.3])
    return Block(
        source=_draw_sessions(source_rng, config, world, in_source),
        target=_with_clicks(_draw_target(target_rng, config, world, in_target), shown),
        shown=shown,
        segment_U=segment,
        region_U=profile_rng.integers(12, size=BLOCK),
    )


def _draw_interests(rng: Generator, config: SyntheticConfig, world: World, count: int) -> Interests:
    category_UJP = np.searchsorted(world.category_share, rng.random((BLOCK, count, 2)))
    category_UJP = np.minimum(category_UJP, config.categories - 1)
    spread = rng.normal(scale=_SCATTER, size=(BLOCK, count, 2, LATENT))
    drifts_UJ = rng.random((BLOCK, count)) < config.drift
    when_UJ = rng.random((BLOCK, count)) * config.days * _DAY_MS
    return Interests(
        category_UJP=category_UJP,
        latent_UJPZ=(world.centre_CZ[category_UJP] + spread).astype(np.float32),
        weight_UJP=rng.uniform(0.6, 1.4, size=(BLOCK, count, 2)),
        switch_UJ=np.where(drifts_UJ, when_UJ, np.inf),
    )


def _choose(first_UJ: NDArray[np.bool_], a: Interests, b: Interests) -> Interests:
    return Interests(
        category_UJP=np.where(first_UJ[..., None], a.category_UJP, b.category_UJP),
        latent_UJPZ=np.where(first_UJ[..., None, None], a.latent_UJPZ, b.latent_UJPZ),
        weight_UJP=np.where(first_UJ[..., None], a.weight_UJP, b.weight_UJP),
        switch_UJ=np.where(first_UJ, a.switch_UJ, b.switch_UJ),
    )


def _join(a: Interests, b: Interests) -> Interests:
    return Interests(
        category_UJP=np.concatenate([a.category_UJP, b.category_UJP], 1),
        latent_UJPZ=np.concatenate([a.latent_UJPZ, b.latent_UJPZ], 1),
        weight_UJP=np.concatenate([a.weight_UJP, b.weight_UJP], 1),
        switch_UJ=np.concatenate([a.switch_UJ, b.switch_UJ], 1),
    )


def _kernel(a_TZ: Floats, b_TZ: Floats) -> Floats:
    gap_TZ = a_TZ - b_TZ
    return np.exp(np.einsum("...z,...z->...", gap_TZ, gap_TZ) * (-0.5 / _REACH**2))


def _counts(rng: Generator, mean: float, skew: float) -> Ints:
    """Rows per user: lognormal around a mean, at least 1, at most 20 times the mean."""
    wanted = mean * rng.lognormal(-0.5 * skew**2, skew, BLOCK)
    return np.clip(np.round(wanted), 1, max(1, 20 * mean)).astype(np.int64)


def _draw_items(rng: Generator, world: World, catalogue: Catalogue, category: Ints) -> Ints:
    """Draw an item of each row's category by popularity; category -1 is any, by popularity."""
    anywhere = np.searchsorted(world.category_share, rng.random(len(category)))
    wanted = np.where(category < 0, np.minimum(anywhere, len(world.category_share) - 1), category)
    rank = np.searchsorted(catalogue.rank_share, rng.random(len(category)))
    item = np.minimum(rank, len(catalogue.rank_share) - 1) * len(world.category_share) + wanted
    # The last rank is incomplete when the categories do not divide the items.
    return np.where(item < catalogue.size, item, wanted)


def _draw_liked(
    rng: Generator, world: World, catalogue: Catalogue, category: Ints, taste_TZ: Floats
) -> tuple[Ints, Floats]:
    """Draw two items and keep the one nearer to the taste; also return its kernel value.

    Rows of category -1 are noise: they keep the first item, whatever the taste.
    """
    first = _draw_items(rng, world, catalogue, category)
    near = _kernel(catalogue.latent_IZ[first], taste_TZ)
    second = _draw_items(rng, world, catalogue, category)
    near_second = _kernel(catalogue.latent_IZ[second], taste_TZ)
    better = (near_second > near) & (category >= 0)
    return np.where(better, second, first), np.where(better, near_second, near)


def _stay(rng: Generator, near: Floats) -> Floats:
    """Seconds spent: longer when the item is near the interest that led to it."""
    return np.exp(1.6 + 2.0 * near + rng.normal(scale=0.6, size=near.shape)).round(1)


def _draw_sessions(
    rng: Generator, config: SyntheticConfig, world: World, interests: Interests
) -> Events:
    """Source behaviours come in sessions; each follows one interest, so a short window misses most.

    Noise rows are drawn by popularity alone.
    """
    count_U = _counts(rng, config.source_events, config.activity_skew)
    end_U = np.cumsum(count_U)
    start_U = end_U - count_U
    user = np.repeat(np.arange(BLOCK), count_U)
    opens = rng.random(len(user)) < 1 / config.session_length
    opens[start_U] = True
    time = _session_times(rng, config, opens, start_U, count_U)
    first = np.flatnonzero(opens)
    session = np.cumsum(opens) - 1
    focus = rng.integers(interests.switch_UJ.shape[1], size=len(first))
    phase = interests.phase(user[first], focus, time[first])
    category = interests.category_UJP[user[first], focus, phase][session]
    taste_TZ = interests.latent_UJPZ[user[first], focus, phase][session]
    category = np.where(rng.random(len(user)) < config.noise_share, -1, category)
    item, near = _draw_liked(rng, world, world.source, category, taste_TZ)
    return Events(user, item, time.astype(np.int64), _stay(rng, near))


def _session_times(
    rng: Generator,
    config: SyntheticConfig,
    opens: NDArray[np.bool_],
    start_U: Ints,
    count_U: Ints,
) -> Floats:
    """Half a minute between rows of a session; pauses fill the user's days."""
    gap = rng.exponential(size=len(opens))
    step = np.where(opens, 0.0, 30_000.0 * gap)
    pause = np.where(opens, gap, 0.0)
    length = config.days * _DAY_MS
    busy_U = np.add.reduceat(step, start_U)
    # Very long histories do not fit at this pace: then rows move closer together.
    pace_U = np.minimum(1.0, 0.5 * length / np.maximum(busy_U, 1.0))
    # One more pause after the last session, so that histories end at different times.
    tail_U = rng.exponential(size=BLOCK)
    idle_U = (length - busy_U * pace_U) / (np.add.reduceat(pause, start_U) + tail_U)
    moved = step * np.repeat(pace_U, count_U) + pause * np.repeat(idle_U, count_U)
    total = np.cumsum(moved)
    return total - np.repeat(total[start_U] - moved[start_U], count_U)


def _draw_target(
    rng: Generator, config: SyntheticConfig, world: World, interests: Interests
) -> Events:
    """Few and scattered behaviours in the target domain, each from any interest."""
    count_U = rng.poisson(config.target_events, BLOCK)
    user = np.repeat(np.arange(BLOCK), count_U)
    time = rng.random(len(user)) * config.days * _DAY_MS
    focus = rng.integers(config.interests, size=len(user))
    phase = interests.phase(user, focus, time)
    noise = rng.random(len(user)) < config.noise_share
    category = np.where(noise, -1, interests.category_UJP[user, focus, phase])
    taste_TZ = interests.latent_UJPZ[user, focus, phase]
    item, near = _draw_liked(rng, world, world.target, category, taste_TZ)
    return Events(user, item, time.astype(np.int64), _stay(rng, near))


def _with_clicks(events: Events, shown: Shown) -> Events:
    """Clicked impressions are behaviours too."""
    click = shown.click
    joined = Events(
        user=np.concatenate([events.user, shown.user[click]]),
        item=np.concatenate([events.item, shown.item[click]]),
        time=np.concatenate([events.time, shown.time[click]]),
        stay=np.concatenate([events.stay, shown.stay[click]]),
    )
    order = np.lexsort((joined.item, joined.time, joined.user))
    return Events(joined.user[order], joined.item[order], joined.time[order], joined.stay[order])


def _draw_shown(
    rng: Generator, config: SyntheticConfig, world: World, interests: Interests, mood_U: Floats
) -> Shown:
    """Impressions of the last days: some chosen for the user, most by popularity."""
    count_U = np.maximum(rng.poisson(config.impressions, BLOCK), 1)
    user = np.repeat(np.arange(BLOCK), count_U)
    first = (config.days - config.impression_days) * _DAY_MS
    time = first + rng.random(len(user)) * config.impression_days * _DAY_MS
    order = np.lexsort((time, user))
    time = time[order]
    focus = rng.integers(config.interests, size=len(user))
    phase = interests.phase(user, focus, time)
    chosen = rng.random(len(user)) < 0.4
    category = np.where(chosen, interests.category_UJP[user, focus, phase], -1)
    taste_TZ = interests.latent_UJPZ[user, focus, phase]
    item, _ = _draw_liked(rng, world, world.target, category, taste_TZ)
    appetite = affinity(world.target, interests, user, item, time)
    shown_before = _recent_same_category(user, world.target.category_I[item], time)
    logit = click_logit(appetite, world.target.appeal_I[item], mood_U[user], shown_before)
    probability = 1 / (1 + np.exp(-logit))
    click = rng.random(len(user)) < probability
    stay = np.where(click, _stay(rng, appetite), np.nan)
    return Shown(user, item, time.astype(np.int64), probability, click, stay)


def affinity(
    catalogue: Catalogue, interests: Interests, user: Ints, item: Ints, time: Floats
) -> Floats:
    """How much candidates appeal to users' interests at a moment, saturating between 0 and 1.

    The kernel between item and each prototype, weighted, summed over interests; a candidate
    outside all categories of interest counts half; then a / (a + 0.35).
    """
    interest = np.arange(interests.switch_UJ.shape[1])
    phase_MJ = interests.phase(user[:, None], interest[None, :], time[:, None])
    where = (user[:, None], interest[None, :], phase_MJ)
    near_MJ = _kernel(catalogue.latent_IZ[item][:, None, :], interests.latent_UJPZ[where])
    summed = (interests.weight_UJP[where] * near_MJ).sum(1)
    same_MJ = interests.category_UJP[where] == catalogue.category_I[item][:, None]
    gated = np.where(same_MJ.any(1), summed, 0.5 * summed)
    return gated / (gated + 0.35)


def click_logit(appetite: Floats, appeal: Floats, mood: Floats, shown_before: Ints) -> Floats:
    """The truth about a click, in logits.

    Args:
        appetite: `affinity` of user and candidate.
        appeal: the candidate's own.
        mood: the user's own.
        shown_before: impressions of the candidate's category to the user in the last day.
    """
    fatigue = 0.8 * (1 - np.exp(-0.5 * shown_before))
    return -2.6 + 4.0 * appetite + appeal + mood - fatigue


def _recent_same_category(user: Ints, category: Ints, time: Floats) -> Ints:
    """Count the earlier impressions of the same user and category in the last day."""
    order = np.lexsort((time, category, user))
    group = user[order] * (category.max() + 1) + category[order]
    # Groups lie far apart on one axis, so one search serves all of them.
    axis = group * (1e4 * _DAY_MS) + time[order]
    earliest = np.searchsorted(axis, axis - _DAY_MS)
    count = np.empty(len(user), np.int64)
    count[order] = np.arange(len(user)) - earliest
    return count
