"""What is on offer and at what price: in numbers, by the list that ships, owned, or asked for."""

import re

import pytest
import yaml

from moesim.files.offers import read_hardware
from moesim.files.prices import BAND, load_price, priced_devices
from moesim.files.profiles import profile_names
from moesim.files.resolved import hardware_tree
from moesim.ground.errors import InputError

LIST = {"list": {"kind": "published", "title": "price list", "read": "2026-05-20"}}


def offered(tmp_path, *, node="nvidia/hgx-h100", priced=False, **offer):
    tree = {"offers": [{"node": node, "max_nodes": 2, **offer}], "fabric": "infiniband/rail-400g", "sources": LIST}
    return read_hardware(tree, "mine.yaml", tmp_path, priced=priced)


def usd(offer):
    return [round(3600 * rent, 9) for rent in (*offer.rent_band, offer.rent)]


def test_a_rent_alone_is_its_own_band(tmp_path):
    (offer,) = offered(tmp_path, rent={"value": "3 USD/h", "from": "list"}).profile.offers
    assert usd(offer) == [3, 3, 3]


def test_a_rent_may_have_a_low_and_a_high(tmp_path):
    found = offered(tmp_path, rent={"value": "3 USD/h", "low": "2 USD/h", "high": "5 USD/h", "from": "list"})
    assert usd(found.profile.offers[0]) == [2, 5, 3]
    assert found.sources["offers.nvidia/hgx-h100.rent_high"].title == "price list"


@pytest.mark.parametrize("offer", [{"rent": "list"}, {}])
def test_a_dated_price_ships_with_its_band_and_its_sources(tmp_path, offer):
    found = offered(tmp_path, **offer)
    assert usd(found.profile.offers[0]) == [1.99, 5.00, 2.95]
    assert found.sources["offers.nvidia/hgx-h100.rent"].read == "2026-05-20"
    assert found.sources["offers.nvidia/hgx-h100.rent_low"].read == "2026-05"


def test_an_owned_node_pays_no_rent_and_says_so(tmp_path):
    found = offered(tmp_path, rent="owned")
    assert usd(found.profile.offers[0]) == [0, 0, 0]
    assert found.sources["offers.nvidia/hgx-h100.rent"].title.startswith("owned")


def test_a_bought_node_pays_no_rent(tmp_path):
    (offer,) = offered(tmp_path, buy={"value": "30000 USD", "from": "list"}).profile.offers
    assert (offer.rent, offer.buy) == (0, 30000)


@pytest.mark.parametrize(("offer", "priced"), [({"rent": "list"}, False), ({}, True)])
def test_a_device_without_a_dated_price_asks_for_one(tmp_path, offer, priced):
    with pytest.raises(InputError) as refusal:
        offered(tmp_path, node="pcie/l4-x8", priced=priced, **offer)
    (fault,) = refusal.value.faults
    assert fault.path == "offers.0.rent"
    assert "no dated price is known for `nvidia/l4`" in fault.problem
    assert "rent: {value: 2.50 USD/h, from: KEY}" in fault.remedy


def test_an_unknown_price_is_no_fault_where_prices_do_not_matter(tmp_path):
    assert usd(offered(tmp_path, node="pcie/l4-x8").profile.offers[0]) == [0, 0, 0]


@pytest.mark.parametrize(
    ("rent", "problem"),
    [
        ({"value": "3 USD/h", "low": "4 USD/h", "from": "list"}, "rent: is not between its low and its high"),
        ({"value": "3 USD/h", "middle": "4 USD/h", "from": "list"}, "rent.middle: unknown field"),
        ({"value": "3 USD/h", "from": "lost"}, "no source is called `lost`"),
        ("lots", "rent"),
        (3, "3 has no source"),
        ([1], "rent"),
    ],
)
def test_a_wrong_rent_is_refused(tmp_path, rent, problem):
    with pytest.raises(InputError, match=re.escape(problem)):
        offered(tmp_path, rent=rent)


def test_prices_written_in_full_read_back_equal(tmp_path):
    found = offered(tmp_path)
    tree = yaml.safe_load(yaml.safe_dump(hardware_tree(found.profile, found.sources)))
    again = read_hardware(tree, "full.yaml", tmp_path)
    assert again.profile == found.profile
    assert again.sources == found.sources


def test_a_node_written_in_full_looks_up_no_price(tmp_path):
    found = offered(tmp_path, node="pcie/l40s-x8", rent="owned")
    tree = hardware_tree(found.profile, found.sources)
    del tree["offers"][0]["rent"]
    assert read_hardware(tree, "full.yaml", tmp_path).profile.offers[0].rent == 0


@pytest.mark.parametrize("device", priced_devices())
def test_a_price_is_dated_banded_and_of_a_device_that_ships(device):
    assert device in profile_names("device")
    found = load_price(device)
    assert found.price.device == device
    assert found.price.rent or found.price.buy
    for kind, band in (("rent", found.price.rent), ("buy", found.price.buy)):
        assert [band[end] for end in BAND if band] == sorted(band.values())
        sources = [found.sources[f"{kind}.{end}"] for end in BAND if band]
        assert all(source.read or source.kind == "derived" for source in sources)
        assert not band or any(source.read or re.search(r"\d{4}-\d\d", source.title) for source in sources)


def test_devices_without_a_price_are_known_to_have_none():
    assert load_price("nvidia/l4") is None
    assert not load_price("nvidia/gb300").price.rent
