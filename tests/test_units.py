import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.ground.errors import UnitError
from moesim.ground.units import EXAMPLES, SPELLINGS, parse, show, spell, weakest


@pytest.mark.parametrize(
    ("text", "symbol", "value"),
    [
        ("4.8 TB/s", "B/s", 4.8e12),
        ("4.8TB/s", "B/s", 4.8e12),
        ("400 Gbit/s", "B/s", 5e10),
        ("2 GiB", "B", 2.0**31),
        ("141 GB", "B", 1.41e11),
        ("2 us", "s", 2e-6),
        ("1.5 h", "s", 5400.0),
        ("989 TFLOP/s", "FLOP/s", 9.89e14),
        ("3.60 USD/h", "USD/s", 1e-3),
        ("300 Gtokens", "tokens", 3e11),
        ("-3 s", "s", -3.0),
        ("1e3 s", "s", 1000.0),
        ("30 /min", "/s", 0.5),
        ("1 kWh", "J", 3.6e6),
    ],
)
def test_a_quantity_is_read_in_si(text, symbol, value):
    assert parse(text, symbol) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "symbol", "message"),
    [
        (4800, "B/s", "4800 is not a number with a unit; write it as `450 GB/s`"),
        ("4800", "B/s", "'4800' has no unit; write it as `450 GB/s`"),
        ("4.8 TB", "B/s", "'4.8 TB' is in B, not in B/s; write it as `450 GB/s`"),
        ("4.8 parsecs", "B/s", "'4.8 parsecs' has an unknown unit `parsecs`; write it as `450 GB/s`"),
        ("fast", "B/s", "'fast' is not a number with a unit; write it as `450 GB/s`"),
        ("4.8 GB/s", "B", "'4.8 GB/s' is in B/s, not in B; write it as `141 GB`"),
    ],
)
def test_a_wrong_unit_is_refused_with_an_example(text, symbol, message):
    with pytest.raises(UnitError) as refusal:
        parse(text, symbol)
    assert str(refusal.value) == message


def test_every_unit_has_an_example_that_reads():
    assert EXAMPLES.keys() == SPELLINGS.keys()
    assert all(parse(example, symbol) > 0 for symbol, example in EXAMPLES.items())


def test_a_spelling_means_one_quantity_only():
    spellings = [spelling for table in SPELLINGS.values() for spelling in table]
    assert len(spellings) == len(set(spellings))


@given(st.sampled_from(sorted(SPELLINGS)), st.floats(1e-3, 1e6), st.integers(1, 9))
def test_amounts_scale_as_their_units_say(symbol, amount, factor):
    for spelling, scale in SPELLINGS[symbol].items():
        assert parse(f"{amount!r} {spelling}", symbol) == pytest.approx(amount * scale, rel=1e-12)
        assert parse(f"{amount * factor!r} {spelling}", symbol) == pytest.approx(amount * factor * scale, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "symbol", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (1.41e11, "B", "141 GB"),
        (4.5e11, "B/s", "450 GB/s"),
        (0.0, "s", "0 s"),
        (3.5 / 3600, "USD/s", "3.50 USD/h"),
        (123456.0, "s", "1.43 days"),
        (float("inf"), "s", "inf s"),
        (0.25, "", "0.250"),
    ],
)
def test_a_number_is_shown_at_a_human_scale(value, symbol, text):
    assert show(value, symbol) == text


@given(st.sampled_from(["s", "B", "B/s", "FLOP/s", "W", "tokens"]), st.floats(1e-6, 1e15))
def test_what_is_shown_reads_back_to_three_digits(symbol, value):
    text = show(value, symbol).replace(",", "")
    if text.split()[0].strip("0.") and text.split()[1] in SPELLINGS[symbol]:
        assert parse(text, symbol) == pytest.approx(value, rel=5e-3)


@given(st.sampled_from(sorted(SPELLINGS)), st.floats(0, 1e30))
def test_what_is_spelled_reads_back_to_the_same_bits(symbol, value):
    assert parse(spell(value, symbol), symbol) == value


@given(st.sampled_from(["B", "B/s", "USD/s", "s", "tokens"]), st.integers(1, 10**6))
def test_what_was_written_shortly_is_spelled_shortly(symbol, tenths):
    text = f"{tenths / 10:g} {EXAMPLES[symbol].split()[1]}"
    assert len(spell(parse(text, symbol), symbol)) <= len(text)


def test_a_prediction_is_as_weak_as_its_weakest_number():
    assert weakest(("measured", "published", "assumed")) == "assumed"
    assert weakest(("fitted", "published")) == "published"
    assert weakest(()) == "measured"
