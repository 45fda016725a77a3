"""Dated prices of devices, low, middle and high: by the hour, and to own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from moesim.files.checked import Rules, check
from moesim.files.sources import split
from moesim.files.trees import names_under, packaged, read
from moesim.ground.errors import ProfileError
from moesim.ground.units import Dollars, DollarsPerSecond, Source

PRICES = "moesim/data/prices"
BAND = ("low", "mid", "high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one gpu costs by the hour (`rent`) and to own (`buy`): low, mid and high, or nothing where none is known."""

    device: str
    rent: Mapping[str, DollarsPerSecond] = field(default_factory=lambda: MappingProxyType({}))
    buy: Mapping[str, Dollars] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcedPrice:
    """A price, with the source of each of its numbers by dotted path (``rent.mid``)."""

    price: Price
    sources: Mapping[str, Source]


def priced_devices() -> tuple[str, ...]:
    """List the devices with a dated price."""
    return names_under(packaged(PRICES))


@lru_cache(maxsize=256)
def load_price(device: str) -> SourcedPrice | None:
    """Load the price of a built-in device; nothing where none is known.

    Raises
    ------
    ProfileError
        The file has faults.
    """
    if device not in priced_devices():
        return None
    label = f"prices/{device}.yaml"
    parts = split(read(packaged(PRICES).joinpath(f"{device}.yaml"), label, ProfileError), label)
    rules: Rules = {Price: _price_faults}
    price = check(Price, parts.plain, label, error=ProfileError, rules=rules, also=parts.faults)
    return SourcedPrice(price=price, sources=parts.sources)


def _price_faults(price: Price) -> Iterator[tuple[str, str, str]]:
    for name in ("rent", "buy"):
        band = getattr(price, name)
        if band and set(band) != set(BAND):
            yield name, "is no band", f"give {', '.join(BAND)}"
        elif band and not band["low"] <= band["mid"] <= band["high"]:
            yield name, "is out of order", "give low, then mid, then high"
