"""Counting tokens and money, so that a limit holds even for requests that are still under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition

from potstill.core.errors import TeacherError


class SpendLimitError(TeacherError):
    """The next request might pass the spend limit; it was not sent."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request or of many.

    Attributes:
        tokens_in: tokens of the prompt.
        tokens_out: tokens of the answer.

    """

    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out)


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens."""

    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def of(self, usage: Usage) -> float:
        """Return what ``usage`` costs."""
        return (usage.tokens_in * self.tokens_in + usage.tokens_out * self.tokens_out) / 1e6


class Reservation:
    """The worst case of one request, held until its answer says what it cost."""

    def __init__(self, spend: Spend, worst: Usage) -> None:
        self._spend, self._worst = spend, worst
        self.usage: Usage | None = None

    def settle(self, usage: Usage) -> None:
        """Say what the answer cost."""
        self.usage = usage

    def lose(self) -> None:
        """Say that a try was sent and not answered: it counts in full, and the next try is reserved anew.

        Raises:
            SpendLimitError: there is no money left for another try.

        """
        self._spend.lost(self._worst)


class Spend:
    """What was spent and what requests under way may still cost; shared by threads.

    Args:
        prices: money for a million tokens.
        limit: money that must not be passed; None for no limit.
        earlier: tokens of earlier requests that count towards the limit.
        earlier_lost: tokens that earlier requests without an answer may have cost.

    """

    def __init__(
        self,
        prices: Prices = Prices(),
        limit: float | None = None,
        *,
        earlier: Usage = Usage(),
        earlier_lost: Usage = Usage(),
    ) -> None:
        self._prices, self._limit = prices, limit
        self._changed = Condition()
        self._reserved = Usage()
        self._under_way = 0
        self.usage = earlier
        self.unanswered = earlier_lost

    @property
    def money(self) -> float:
        """Money for all answers, and at most for the tries that were sent and not answered."""
        return self._prices.of(self.usage + self.unanswered)

    @contextmanager
    def reserve(self, worst: Usage) -> Iterator[Reservation]:
        """Hold the worst case of a request while it is under way.

        Where it does not fit, but requests are under way that may turn out cheaper than their worst case, it waits
        for them.

        Raises:
            SpendLimitError: it might pass the limit.

        """
        reservation = Reservation(self, worst)
        with self._changed:
            self._changed.wait_for(lambda: self._fits(worst) or not self._under_way)
            self._check(worst)
            self._reserved = self._reserved + worst
            self._under_way += 1
        try:
            yield reservation
        finally:
            with self._changed:
                self._reserved = Usage(
                    self._reserved.tokens_in - worst.tokens_in, self._reserved.tokens_out - worst.tokens_out
                )
                self._under_way -= 1
                if reservation.usage is not None:
                    self.usage = self.usage + reservation.usage
                self._changed.notify_all()

    def lost(self, worst: Usage) -> None:
        """Count a try that was sent and not answered; its reservation now holds the next try."""
        with self._changed:
            self.unanswered = self.unanswered + worst
            # The reservation still stands for the next try, so only the lost one has to fit.
            self._check(Usage())

    def _at_most(self, more: Usage) -> float:
        return self._prices.of(self.usage + self.unanswered + self._reserved + more)

    def _fits(self, more: Usage) -> bool:
        return self._limit is None or self._at_most(more) <= self._limit

    def _check(self, more: Usage) -> None:
        if not self._fits(more):
            raise SpendLimitError(
                f"The spend limit of {self._limit:g} was reached: {self.money:.4f} is spent, and with the next request "
                f"it might become {self._at_most(more):.4f}. Answers so far are kept; raise spend_limit and run the "
                "same command again to go on."
            )
