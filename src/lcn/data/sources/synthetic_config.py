"""The dials of synthetic logs."""

from __future__ import annotations

from pydantic import Field, model_validator

from lcn.config import Config


class SyntheticConfig(Config):
    """How many rows, and what truth is planted in them."""

    users: int = Field(default=1_000, ge=1)
    source_items: int = Field(default=4_000, ge=1)
    target_items: int = Field(default=1_000, ge=1)
    """Items of the two domains are disjoint, but for `shared_items`."""
    shared_items: float = Field(default=0.0, ge=0, le=1)
    """Share of the target items that are source items too: one item, one id, in both logs."""
    categories: int = Field(default=60, ge=2)
    """Item groups; both domains use the same ones unless `shared_categories` is off."""
    shared_categories: bool = True
    """Off: the domains number their categories apart, and only behaviour links them."""
    source_events: int = Field(default=200, ge=1)
    """Mean source behaviours of a user."""
    target_events: float = Field(default=1.0, ge=0)
    """Mean target behaviours of a user besides the clicks on impressions."""
    impressions: float = Field(default=12.0, ge=1)
    """Mean impressions of a user."""
    days: int = Field(default=60, ge=2)
    """Length of the log."""
    impression_days: int = Field(default=14, ge=1)
    """Impressions lie in the last so many days."""
    rho: float = Field(default=0.9, ge=0, le=1)
    """Strength of the shared interest: the probability that an interest in the target domain is
    also one in the source domain. 0: the source log says nothing about target clicks."""
    interests: int = Field(default=4, ge=1)
    """Interests of a user in the target domain (and as many in the source domain)."""
    private_interests: int = Field(default=2, ge=0)
    """Further interests that only lead to source behaviours."""
    drift: float = Field(default=0.2, ge=0, le=1)
    """Probability that an interest is replaced by another one at some moment of the log."""
    noise_share: float = Field(default=0.2, ge=0, le=1)
    """Behaviours that follow popularity instead of interest."""
    session_length: int = Field(default=15, ge=1)
    """Mean source behaviours in a row that follow one interest."""
    popularity_skew: float = Field(default=1.0, ge=0)
    """Exponent of the popularity of items within a category; half of it between categories."""
    activity_skew: float = Field(default=0.8, ge=0)
    """Standard deviation of the logarithm of source behaviours per user."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> SyntheticConfig:
        if self.impression_days > self.days:
            raise ValueError(f"impression_days {self.impression_days} exceeds days {self.days}")
        if min(self.source_items, self.target_items) < self.categories:
            raise ValueError("each domain needs at least one item per category")
        if self.shared_items and self.target_items > self.source_items:
            raise ValueError(
                f"shared_items needs at least as many source items as target items, got "
                f"{self.source_items} and {self.target_items}"
            )
        if self.shared_items and not self.shared_categories:
            raise ValueError("shared_items needs shared_categories: one item has one category")
        return self
