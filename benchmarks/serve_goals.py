"""What the service is meant to reach, and whether a measurement did."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.load import Load, quantile
from benchmarks.serve_models import Bare

AT: Final = 16
_SERVICE: Final = "service"
_EAGER: Final = ("plain", "litserve")
_RESNET: Final = "resnet50-modality"


@dataclass(slots=True)
class Measured:
    """What one server did.

    Attributes:
        closed: the closed loops, by number of clients.
        first_ms: time of the first request after the server was ready.
        overload: the open loop above its capacity; None where it was not run.
        growth: of its memory over the long run, 0.05 for 5 %; None where it was not run.
    """

    closed: dict[int, Load] = field(default_factory=dict)
    first_ms: float = math.nan
    overload: Load | None = None
    growth: float | None = None

    @property
    def alone_ms(self) -> float:
        """The median of a single client."""
        return self.closed[1].quantile(50)


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal and what was measured.

    Attributes:
        words: what it is about.
        value: measured.
        least: that it must be; None where it has an upper limit.
        most: that it may be; None where it has a lower limit.
    """

    words: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the value keeps to the limit; what could not be measured does not."""
        if math.isnan(self.value):
            return False
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def describe(self) -> str:
        """One line for people."""
        limit = f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"
        return f"{'pass' if self.is_met else 'FAIL'}   {self.words}: {self.value:.2f}, {limit}"


def goals(model: str, bare: Bare, measured: Mapping[str, Measured]) -> list[Goal]:
    """The goals for one model, as far as they were measured.

    Args:
        model: name.
        bare: its bare loop.
        measured: what each server did.
    """
    service = measured.get(_SERVICE)
    return [] if service is None else list(_goals(model, bare, service, measured))


def _goals(model: str, bare: Bare, service: Measured, measured: Mapping[str, Measured]) -> Iterator[Goal]:
    if service.closed:
        rate = service.closed[AT].rate
        if model == _RESNET:
            for kind, peer in measured.items():
                if kind in _EAGER and peer.closed:
                    yield Goal(f"times {kind}, {AT} clients", rate / peer.closed[AT].rate, least=3.0)
            yield Goal(f"times the bare loop, {AT} clients", rate / bare.rate, least=0.85)
            yield Goal("ms more than the bare call, one client", service.alone_ms - bare.median_ms, most=5.0)
        else:
            yield Goal(f"times the bare loop, {AT} clients", rate / bare.rate, least=0.6)
        if (same := measured.get("litserve-openvino")) is not None:
            for clients, load in same.closed.items():
                least = 1.3 if clients == AT else 1.0
                ratio = service.closed[clients].rate / load.rate
                yield Goal(f"times litserve with the same backend, {clients} clients", ratio, least=least)
        yield Goal("first request / median", service.first_ms / service.alone_ms, most=1.5)
    if service.overload is not None:
        load = service.overload
        others = sum(count for status, count in load.statuses.items() if status not in (200, 503))
        yield Goal("answers other than 200 and 503, 120 % load", others, most=0)
        if 503 in load.times:
            yield Goal("ms of a refusal, p99, 120 % load", load.quantile(99, 503), most=50.0)
        yield Goal("ms of /health/live, p99, 120 % load", quantile(load.live, 99), most=100.0)
    if service.growth is not None:
        yield Goal("% more memory over the long run", 100 * service.growth, most=5.0)
