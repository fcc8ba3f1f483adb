"""Strict YAML: what is wrong is said with file, line, key, rule and way out; nothing but BadInput ever comes out."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consortium.canonical import Fact
from consortium.errors import BadInput
from consortium.jobs import Purpose
from consortium.loading import BYTES_MAX, load, parse, read
from policies.campaign import Campaign
from policies.ranges import Address, Count, Share


class Inner(Fact):
    share: Share = 0.5
    label: str | None = None


class Outer(Fact):
    name: str
    count: Count = 1
    flag: bool = False
    mode: Literal["fast", "slow"] = "slow"
    purpose: Purpose | None = None
    tags: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("one",)
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    table: dict[str, Count] = msgspec.field(default_factory=dict)
    address: Address = "localhost:1"
    free: dict[str, Any] = msgspec.field(default_factory=dict)


REFUSED = [
    # not the YAML we accept
    ("", "f.yaml:1: the file says nothing; write at least one 'key: value'"),
    (
        "name: x\ninner: [",
        "f.yaml:2: not YAML: expected the node content, but found '<stream end>'; check indentation and quotes",
    ),
    (
        "name: x\n\tcount: 1",
        "f.yaml:2: not YAML: found character '\\t' that cannot start any token; check indentation and quotes",
    ),
    ("name: x\ncount: 1\nname: y", "f.yaml:1: name: stands again in line 3; keep one of them"),
    (
        "name: &a x\ntable: {a: *a}\ninner: {<<: *a}",
        "f.yaml:1: name: 'a' is an anchor or alias; we read none, write the value out\n"
        "f.yaml:2: table.a: 'a' is an anchor or alias; we read none, write the value out\n"
        "f.yaml:3: inner.<<: 'a' is an anchor or alias; we read none, write the value out",
    ),
    (
        "name: !!python/object:os.system x",
        "f.yaml:1: name: 'tag:yaml.org,2002:python/object:os.system' is a tag; we read none, write the plain value",
    ),
    ("name: x\n---\nname: y", "f.yaml:2: a second document starts; keep one a file"),
    ("? [name]\n: x", "f.yaml:1: a key must be one word of text; use 'key: value'"),
    ("name: " + "[" * 60, "f.yaml:1: nested deeper than 50; flatten it"),
    (
        "count: 99999999999999999999",
        "f.yaml:1: count: 99999999999999999999 does not fit into 64 bits; write a smaller number",
    ),
    ("inner: {share: 1e999}", "f.yaml:1: inner.share: '1e999' is beyond any float; write a smaller number"),
    ('name: "\\ud800"', "f.yaml:1: name: half of a surrogate pair; write the character itself"),
    (
        'name: "\\UFFFFFFFF"',
        "f.yaml: an escape or a directive is out of range; check everything after '\\' and '%'",
    ),
    ("name: x\nmode: a\x07b", "f.yaml:2: control character U+0007; remove it"),
    # not the facts we want
    ("[name]", "f.yaml:1: a list does not fit; write a mapping"),
    ("count: 2", "f.yaml:1: 'name' is missing; add 'name:' with text"),
    ("name: x\ncuont: 2", "f.yaml:2: cuont: unknown key; did you mean 'count'?"),
    (
        "name: x\ninner: {zzz: 2}",
        "f.yaml:2: inner.zzz: unknown key; write one of: label, share",
    ),
    ("name: 5", "f.yaml:1: name: 5 does not fit; write text in quotes"),
    (
        "name: x\ncount: 1_000",
        "f.yaml:2: count: '1_000' (text) does not fit; "
        "write a whole number (at least 1), in decimal digits without quotes, '_' or units",
    ),
    ("name: x\ncount: 0", "f.yaml:2: count: 0 does not fit; write a whole number (at least 1)"),
    ("name: x\ncount: 1.0", "f.yaml:2: count: 1.0 does not fit; write a whole number (at least 1)"),
    ("name: x\ncount: true", "f.yaml:2: count: true does not fit; write a whole number (at least 1)"),
    ("name: x\ncount:", "f.yaml:2: count: nothing does not fit; write a whole number (at least 1)"),
    (
        "name: x\nflag: yes",
        "f.yaml:2: flag: 'yes' (text) does not fit; write true or false (yes, no, on and off are text)",
    ),
    ("name: x\nmode: quick", "f.yaml:2: mode: 'quick' is not one of the choices; write one of: fast, slow"),
    (
        "name: x\npurpose: 3",
        "f.yaml:2: purpose: 3 is not one of the choices; "
        "write one of: tokenizer, seed, round, rival, check, gate, compare, merge, flower",
    ),
    ("name: x\ntags: x", "f.yaml:2: tags: 'x' (text) does not fit; write a list (at least 1 item)"),
    ("name: x\ntags: []", "f.yaml:2: tags: an empty list does not fit; write a list (at least 1 item)"),
    (
        "name: x\nmany:\n  - share: 0.1\n  - share: 1.5\n    label: 1",
        "f.yaml:4: many[1].share: 1.5 does not fit; write a number (at least 0 and at most 1)\n"
        "f.yaml:5: many[1].label: 1 does not fit; write text in quotes",
    ),
    ("name: x\ntable: {a: 1, b: 0}", "f.yaml:2: table.b: 0 does not fit; write a whole number (at least 1)"),
    (
        "name: x\naddress: example.eu",
        "f.yaml:2: address: 'example.eu' is not what we expect here; "
        "write host:port, such as coordinator.example.eu:7443 or [::1]:7443",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text[:24] for text, _ in REFUSED])
def test_bad_files_are_refused_in_exactly_these_words(text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text.encode(), "f.yaml").convert(Outer)
    assert str(caught.value) == message


def test_all_problems_are_shown_in_the_order_of_the_file_up_to_a_limit() -> None:
    lines = "\n".join(f"  wrong{number}: 0" for number in range(30))
    with pytest.raises(BadInput) as caught:
        parse(f"count: 0\ninner:\n{lines}\nflag: 3".encode(), "f.yaml").convert(Outer)
    shown = str(caught.value).splitlines()
    assert shown[0] == "f.yaml:1: 'name' is missing; add 'name:' with text"
    assert shown[1].startswith("f.yaml:1: count: 0")
    assert shown[2].startswith("f.yaml:3: inner.wrong0:")
    assert shown[20] == "... and 13 more"
    assert len(shown) == 21


def test_only_true_and_false_are_booleans_and_only_decimals_are_numbers() -> None:
    text = """
    [no, NO, off, on, yes, y, True, 2026-01-01, 12:30, 0x10, 0o7, 010, 1_000, .inf, .nan, ., e5, "1", 'true',
     true, false, null, ~, 1, -7, +3, 1e-3, 1.0, .5, -2.5E+3, 5.]
    """
    assert parse(text.encode(), "f.yaml").value == [
        *("no", "NO", "off", "on", "yes", "y", "True", "2026-01-01", "12:30", "0x10", "0o7", "010", "1_000"),
        *(".inf", ".nan", ".", "e5", "1", "true"),
        *(True, False, None, None, 1, -7, 3, 1e-3, 1.0, 0.5, -2500.0, 5.0),
    ]  # fmt: skip
    assert parse(b"{no: 1, 5: 2, true: 3}", "f.yaml").value == {"no": 1, "5": 2, "true": 3}


def test_where_names_the_line_of_a_place_or_of_what_is_nearest() -> None:
    document = parse(
        b"# head\nname: x\ninner:\n  label: y\nmany:\n  - share: 1\n  -\n    share: 0\n", "f.yaml"
    )
    assert document.where(("inner", "label")) == "f.yaml:4"
    assert document.where(("inner", "share")) == "f.yaml:3"
    assert document.where(("many", 1, "share")) == "f.yaml:8"
    assert document.where(("train", "steps")) == "f.yaml:2"


def test_numbers_may_be_whole_where_floats_are_wanted(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: \xd0\xb1\xd1\x8a\xd0\xbb\xd0\xb3\ninner: {share: 1}\n")
    assert load(file, Outer) == Outer(name="бълг", inner=Inner(share=1.0))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml: cannot be read \(No such file or directory\)"):
        read(tmp_path / "nowhere.yaml")
    with pytest.raises(BadInput, match=r"cannot be read \(Is a directory\)"):
        read(tmp_path)
    (tmp_path / "big.yaml").write_bytes(b"#" * (BYTES_MAX + 1))
    with pytest.raises(BadInput, match=r"big\.yaml: larger than 4 MiB"):
        read(tmp_path / "big.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: ö".encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.yaml:2: byte 8 is not UTF-8; save the file as UTF-8"):
        read(tmp_path / "latin.yaml")


SCRAPS = (
    *(
        "name",
        "count",
        "inner",
        "many",
        "campaign",
        "train",
        "languages",
        "x",
        "no",
        "1",
        "-1.5",
        "true",
        "~",
    ),
    *(
        ": ",
        ":",
        "- ",
        "\n",
        "\n  ",
        " ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "!!int ",
        "!",
        "? ",
        "|\n",
        ">-\n",
    ),
    *(
        "'",
        '"',
        "\\U",
        "\\x0",
        "#",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "%TAG ! x\n",
        "<<: ",
        "\t",
        "\x00",
        "\u2028",
    ),
)


@given(
    st.one_of(st.lists(st.sampled_from(SCRAPS), max_size=40).map("".join), st.text(max_size=60)).map(
        str.encode
    )
    | st.binary(max_size=60)
)
@example(b'"\\UFFFFFFFF"')
@example(b'"\\ud800": 1')
@example(b"%YAML " + b"9" * 5000 + b".1\n--- a")
@example(b"a: " + b"9" * 5000)
@example(b"a: " + b"1" * 400 + b".0e" + b"9" * 400)
def test_whatever_the_bytes_only_bad_input_is_raised(data: bytes) -> None:
    for kind in (Outer, Campaign):
        try:
            parse(data, "f.yaml").convert(kind)
        except BadInput as error:
            said = str(error).encode()  # a surrogate in it could not be shown
        else:
            said = b"f.yaml"
        assert said.startswith(b"f.yaml")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-2, 2)
    | st.sampled_from(["fast", "seed", "x", "a:1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*Outer.__struct_fields__, *Inner.__struct_fields__]), inner, max_size=6
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(Outer.__struct_fields__), VALUES))
def test_we_accept_exactly_what_msgspec_accepts(value: dict[str, Any]) -> None:
    """The walk that explains is a second implementation of the types; it must never disagree with the first."""
    data = msgspec.json.encode(value)
    value = {key: inner for key, inner in value.items() if key in Outer.__struct_fields__}
    try:
        ours: Outer | None = parse(data, "f.yaml").convert(Outer)
    except BadInput as error:
        ours = None
        if "unknown key" in str(error):
            return  # msgspec ignores those
    try:
        theirs: Outer | None = msgspec.convert(value, Outer)
    except msgspec.ValidationError:
        theirs = None
    assert ours == theirs
