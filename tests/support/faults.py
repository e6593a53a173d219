"""Which requests to a store fail, and how: at chosen requests, or a share of all."""

import collections
import dataclasses
import enum
import hashlib
from collections.abc import Collection


class Fault(enum.StrEnum):
    """What may happen to a request."""

    SLOW_DOWN = "status 503, SlowDown"
    TOO_MANY_REQUESTS = "status 429"
    INTERNAL_ERROR = "status 500"
    RESET = "reset before the server has the request"
    LOST_ANSWER = "done by the server, and reset before its answer"
    RESET_IN_BODY = "reset in the middle of the answer's body"
    HALF_BODY = "closed in the middle of the answer's body"
    WRONG_LENGTH = "closed after fewer bytes than announced"
    STALE_LISTING = "the answer that an identical listing had before"
    LATENCY = "answered late"
    AWAY = "nobody listens for a time"


IN_BODY = (Fault.RESET_IN_BODY, Fault.HALF_BODY, Fault.WRONG_LENGTH)
_WITH_BODY = ("get", "get_range", "list")
# Of any request; the right answer to a listing that is stale is another question.
PASSING = tuple(set(Fault) - {Fault.STALE_LISTING, Fault.AWAY})


@dataclasses.dataclass
class Seen:
    """A request that has come, and what happened to it.

    Attributes:
      operation: such as "get_range".
      key: of the object, of a listing its prefix.
    """

    operation: str
    key: str
    fault: Fault | None = None

    def fits(self, operation: str, in_key: str) -> bool:
        """Whether it is of an operation and its key holds a text; "" is any."""
        return operation in ("", self.operation) and in_key in self.key


@dataclasses.dataclass
class _Plan:
    fault: Fault
    operation: str
    in_key: str
    n_left: int


@dataclasses.dataclass
class Faults:
    """Chooses faults, the same for the same requests in whatever order they come.

    Attributes:
      share: of requests that fail, 0 to 1.
      kinds: how they fail, each as often as the others that can happen to a request.
    """

    share: float
    seed: int
    kinds: Collection[Fault]
    _plans: list[_Plan] = dataclasses.field(default_factory=list)
    _n_seen: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )

    def plan(self, fault: Fault, operation: str, in_key: str, n: int) -> None:
        """The next `n` requests that fit meet a fault."""
        self._plans.append(_Plan(fault, operation, in_key, n))

    def choose(self, operation: str, key: str) -> Fault | None:
        """The fault of a request that has come now."""
        seen = Seen(operation, key)
        for plan in self._plans:
            if plan.n_left and seen.fits(plan.operation, plan.in_key):
                plan.n_left -= 1
                return plan.fault
        self._n_seen[operation, key] += 1
        nth = self._n_seen[operation, key]
        if self._draw("whether", operation, key, nth) >= self.share:
            return None
        kinds = [kind for kind in sorted(self.kinds) if _may_happen(kind, operation)]
        if not kinds:
            return None
        return kinds[int(self._draw("which", operation, key, nth) * len(kinds))]

    def _draw(self, *of: object) -> float:
        text = repr((self.seed, *of)).encode()
        digest = hashlib.blake2b(text, digest_size=4).digest()
        return int.from_bytes(digest, "big") / 2**32


def _may_happen(fault: Fault, operation: str) -> bool:
    if fault is Fault.STALE_LISTING:
        return operation == "list"
    return fault not in IN_BODY or operation in _WITH_BODY
