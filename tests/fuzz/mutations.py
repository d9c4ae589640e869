"""Valid JSON, spoilt in ways that files get spoilt in: hypothesis strategies.

A value is made of dicts, lists and leaves; an object that says a key twice is Pairs, and what json.dumps would not
write is Literal.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st


class Literal(str):
    """Text that stands in the file as it is."""

    def __repr__(self) -> str:
        return f"Literal({str(self)[:40]!r}, {len(self)} characters)"


class Pairs(list[tuple[str, Any]]):
    """An object whose keys need not differ."""


NAMES = (
    *("", " ", ".", "..", "../..", "/", "/etc/passwd", "a/b", "a\\b", "-x", "--help", "=", "a=b", "a.b"),
    *("a\0b", "a\nb", "a\u2028b", "\x1b[2J", "\ud800", "\udfff", "\ufeff", "é", "x" * 300, "x" * 5000),
    *("$x_{$", "%s", "{0}", "{{7*7}}", "<mix>", "<b>", "$(id)", "nan", "null", "1", "true"),
    *("uniform", "natural", "doge_slimpajama", "tokenizer", "manifest.json", "mixture.json", "version", "domains"),
    *("step", "loss", "gram", "schedule", "model_type", "pretrained", "weight/", "weight/\0", "weight/" + "x" * 300),
    *("loss/$x_{$", "loss/<b>", "loss/\x1b[2J", "mean_weight/é", "mean_weight/", "held_out/%s"),
)
NUMBERS = (
    *(0, 1, -1, 2, 0.5, -0.5, 1.0, 1e-320, 1e16, 1e300, 1e308),
    *(2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1),
    *(Literal("NaN"), Literal("Infinity"), Literal("-Infinity"), Literal("1e999"), Literal("-1e999"), Literal("-0")),
    *(Literal("9" * 30), Literal("9" * 400), Literal("-" + "9" * 400), Literal("9" * 5000)),
    Literal("1." + "0" * 5000),
)
DEEP = tuple(
    Literal(opening * depth + inside + closing * depth)
    for depth in (30, 90, 300, 900, 100_000)
    for opening, inside, closing in (("[", "", "]"), ('{"a":', "1", "}"))
)
_BROKEN = ("", ",", "{", "]", "'x'", "01", "+1", ".5", "nul", '"\\x"', '"\\ud83d"', "/* */ 1", '"\t"')
BROKEN = tuple(map(Literal, _BROKEN))

names = st.sampled_from(NAMES) | st.text(max_size=8)
small = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)
junk = st.sampled_from(NUMBERS) | names | small | st.sampled_from(DEEP) | st.sampled_from(BROKEN)

Place = tuple[str | int, ...]


def places(value: Any, here: Place = ()) -> list[Place]:
    """The ways to everything inside of a value, itself first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if type(value) is list else ()
    return [here, *(place for key, inside in inner for place in places(inside, (*here, key)))]


def at(value: Any, place: Place) -> Any:
    """What stands there."""
    for key in place:
        value = value[key]
    return value


@st.composite
def mutated(draw: st.DrawFn, values: Any, most: int = 3) -> Any:
    """The value with 0 to `most` changes, mostly one: what is wrong first hides the rest."""
    values = copy.deepcopy(values)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, *range(most + 1)]))):
        values = _change(draw, values)
    return values


def _change(draw: st.DrawFn, values: Any) -> Any:
    place = draw(st.sampled_from(places(values)))
    if not place:
        return draw(small) if draw(st.integers(0, 9)) == 9 else _change_inside(draw, values)
    parent, key = at(values, place[:-1]), place[-1]
    what = draw(st.sampled_from(["replace", "replace", "inside", "remove", "wrap", "rename", "swap"]))
    if what == "remove":
        del parent[key]
    elif what == "wrap":
        parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}, json.dumps(repr(parent[key]))]))
    elif what == "rename" and isinstance(parent, dict):
        parent[draw(names)] = parent.pop(key)
    elif what == "swap":
        parent[key] = copy.deepcopy(at(values, draw(st.sampled_from(places(values)))))
    elif what == "inside":
        parent[key] = _change_inside(draw, parent[key])
    else:
        parent[key] = draw(junk)
    return values


def _change_inside(draw: st.DrawFn, value: Any) -> Any:
    """A further key or item, a key twice, fewer items; another number or text."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        return Pairs([*value.items(), (draw(st.sampled_from(list(value))), draw(junk))])
    if isinstance(value, dict):
        return {**value, draw(names): draw(junk)}
    if type(value) is list:
        return draw(st.sampled_from([value + value, value[1:], value[:-1], [*value, draw(junk)], [value]]))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return draw(st.sampled_from([-value, value + 0.5, float(value), str(value), value * 10**6, value == 1]))
    return draw(junk)


def as_text(value: Any) -> str:
    """As a file has it; what is no JSON included. Lone surrogates are escaped, as json.dumps does."""
    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {as_text(inner)}" for key, inner in value) + "}"
    if isinstance(value, dict):
        return as_text(Pairs(value.items()))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_text, value)) + "]"
    return json.dumps(value)


@st.composite
def spoilt_bytes(draw: st.DrawFn, raw: bytes) -> bytes:
    """The bytes, as they are in four of five cases; else cut, in another encoding, or with strange ones among them."""
    if draw(st.integers(0, 4)):
        return raw
    place = draw(st.integers(0, len(raw)))
    strange = draw(
        st.sampled_from([b"\xff", b"\0", b"\xed\xa0\x80", b"\xc3", b"\n", b"\r", b" ", b'"', b"}", b"\xef\xbb\xbf"])
    )
    text = raw.decode(errors="replace")
    choices = [
        raw[:place],
        raw[place:],
        raw[:place] + strange + raw[place:],
        raw[:place] + strange + raw[place + 1 :],
        b"\xef\xbb\xbf" + raw,
        text.encode("utf-16"),
        text.encode("utf-32-le"),
        raw.replace(b"\n", b"\r\n"),
        raw + raw,
        raw + b"\0" * 64,
        b"",
        strange,
    ]
    return draw(st.sampled_from(choices))


def files(values: Any) -> st.SearchStrategy[bytes]:
    """A JSON file."""
    return mutated(values).map(whole).flatmap(spoilt_bytes)


def whole(values: Any) -> bytes:
    """The file before it is cut or re-encoded."""
    return as_text(values).encode()


def line_files(lines: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """A file of JSON lines, with a line end each."""
    return mutated(list(lines)).map(whole_lines).flatmap(spoilt_bytes)


def whole_lines(values: Any) -> bytes:
    """The same of JSON lines."""
    items = values if type(values) is list else [values]
    return "".join(as_text(item) + "\n" for item in items).encode()


@st.composite
def assignments(draw: st.DrawFn, values: Any) -> list[str]:
    """What may stand behind --set: keys of `values` and others, with values of all kinds."""
    known = [place for place in places(values) if place and all(isinstance(key, str) for key in place)]
    keys = st.lists(names, min_size=1, max_size=3).map(".".join) | names
    strange = st.builds("{}={}".format, keys, junk.map(as_text) | names) | names
    settings = []
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(known))
        near = st.just(as_text(at(values, place))) | mutated([at(values, place)]).map(as_text)
        setting = near.map(lambda text, place=place: f"{'.'.join(place)}={text.removeprefix('[').removesuffix(']')}")
        settings.append(draw(setting if draw(st.integers(0, 3)) else strange))
    return settings
