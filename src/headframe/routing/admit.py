"""Who may ask how often, and for how much. Buckets fill by the second and are never overdrawn at admission: what a request may cost at most is taken before it
starts and what it did not use is given back after, so that no number of requests at once gets past a limit.
"""

from headframe.model.units import NANO_PER_USD

MINUTE_S = 60.0


class Bucket:
    """A limit per minute. `limit` 0 is none."""

    __slots__ = ("at_s", "level", "limit")

    def __init__(self, limit: float, now_s: float) -> None:
        self.limit, self.level, self.at_s = limit, limit, now_s

    def fill(self, limit: float, now_s: float) -> None:
        """Bring it up to now, at the limit that holds now."""
        if limit != self.limit:
            self.level += limit - self.limit
            self.limit = limit
        level = self.level + limit * (now_s - self.at_s) / MINUTE_S
        self.level = level if level < limit else limit
        self.at_s = now_s

    def take(self, amount: float) -> bool:
        """Take it if it is there. More than a whole minute's is let through when the bucket is full: nothing could ever be."""
        if not self.limit:
            return True
        if self.level < amount and self.level < self.limit:
            return False
        self.level -= amount
        return True

    def give(self, amount: float) -> None:
        """Put back what was not used, or take what was used beyond (negative)."""
        level = self.level + amount
        self.level = level if level < self.limit else self.limit

    def wait_s(self, amount: float) -> float:
        """How long until so much is there."""
        return max(0.0, (min(amount, self.limit) - self.level) * MINUTE_S / self.limit) if self.limit else 0.0


class Purse:
    """What may still be spent for a project here: what was granted, less what was spent, less what requests under way may yet cost."""

    __slots__ = ("granted", "held", "spent")

    def __init__(self) -> None:
        self.granted = self.spent = self.held = 0

    @property
    def left(self) -> int:
        """Nano-dollars that are free."""
        return self.granted - self.spent - self.held

    def hold(self, amount: int) -> bool:
        """Set aside the most that a request can cost."""
        if amount > self.left:
            return False
        self.held += amount
        return True

    def settle(self, held: int, cost: int) -> None:
        """The request is over: it cost so much. A cost above the hold (a server that gave more than it was asked for) is spent all the same."""
        self.held -= held
        self.spent += cost


WISH_LEAST = NANO_PER_USD // 10
WISH_MOST = 5 * NANO_PER_USD
"""A gateway asks for what a minute cost lately, at least ten cents and at most five dollars."""


def wish(spent_lately: int, waiting: int) -> int:
    """What to have at hand: for about a minute as the last one was, and for what waits."""
    return min(WISH_MOST, max(WISH_LEAST, spent_lately)) + waiting
