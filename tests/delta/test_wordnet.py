"""Term and gloss of every synset, out of a small database in the true format and out of the installed one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.wordnet import FILES, NEUTRAL, USUAL_FOLDERS, definition, read_wordnet
from latentloom.errors import ConfigError, CorruptFileError, FileError

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n  2 the author.  \n"
LINES = {
    "data.noun": [
        "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 002 @ 02083346 n 0000 ~ 01322604 n 0000 "
        '| a member of the genus Canis; occurs in many breeds; "the dog barked all night"  ',
        "03001627 06 n 01 chair 0 001 @ 04161981 n 0000 | a seat for one person, with a support for the back  ",
        "13860793 25 n 01 solid_figure 0 000 | a three-dimensional shape (as in \"a solid\"): 'here'  ",
        "09999999 17 n 01 Pebble 0 000 | pebble  ",
        '09999998 17 n 01 cobble 0 000 | "a road of cobbles"  ',
    ],
    "data.verb": [
        "02756821 43 v 02 snow 0 sleet a 001 @ 02756558 v 0000 02 + 16 00 + 17 00 "
        '| fall as snow, as in "It was snowing all night"; "it snows"  ',
    ],
    "data.adj": [
        "00666784 00 s 02 afoot(p) 0 underway 0 001 & 00666058 a 0000 "
        '| currently in progress; e.g. "plans are afoot"  ',
        "01740000 01 a 01 ready_to_hand(ip) 0 000 |  easy to reach:  ",
    ],
    "data.adv": ['00001740 02 r 01 a_cappella 0 000 | without musical accompaniment; "they performed a cappella"  '],
}


def write_database(folder: Path, **changed: str) -> Path:
    """The small database, with other lines for the files that are named by their part of speech."""
    for name, lines in LINES.items():
        text = LICENCE + "".join(f"{line}\n" for line in lines)
        (folder / name).write_text(changed.get(name.removeprefix("data."), text), encoding="utf-8")
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_database(tmp_path)


def test_every_synset_gives_its_first_word_and_its_definition_in_the_order_of_the_files(database: Path):
    assert read_wordnet(database) == [
        ("dog", "a member of the genus Canis; occurs in many breeds"),
        ("chair", "a seat for one person, with a support for the back"),
        ("solid figure", "a three-dimensional shape (as in \"a solid\"): 'here'"),
        ("snow", "fall as snow"),
        ("afoot", "currently in progress"),
        ("ready to hand", "easy to reach"),
        ("a cappella", "without musical accompaniment"),
    ]


def test_the_neutral_fields_leave_out_people_deeds_and_weapons(database: Path):
    assert [term for term, _ in read_wordnet(database, lexicographer_files=NEUTRAL)] == ["dog", "solid figure", "snow"]
    assert NEUTRAL.isdisjoint({0, 1, 4, 6, 8, 12, 18, 27, 29, 33, 37, 41})
    assert [term for term, _ in read_wordnet(database, lexicographer_files=[6])] == ["chair"]
    assert read_wordnet(database, lexicographer_files=[]) == []


@pytest.mark.parametrize("number", [-1, 45])
def test_a_field_that_wordnet_lacks_is_refused(database: Path, number: int):
    with pytest.raises(ConfigError, match=f"lexicographer file {number}; WordNet has 0 to 44"):
        read_wordnet(database, lexicographer_files=[5, number])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("02084071 05 n 01 dog 0 000 a member of the genus Canis", "no '|'"),
        ("2084071 05 n 01 dog 0 000 | a member of the genus Canis", "begins with '2084071 05"),
        ("", "no '|'"),
        ("02084071 05 v 01 dog 0 000 | a member of the genus Canis", "its kind is 'v', in this file 'n'"),
        ("02084071 45 n 01 dog 0 000 | a member of the genus Canis", "lexicographer file is 45"),
        ("02084071 05 n 00 dog 0 000 | a member of the genus Canis", "has 0 words"),
        ("02084071 05 n 02 dog 0 000 | a member of the genus Canis", "has 2 words"),
        ("02084071 05 n 01 dog 0 | a member of the genus Canis", "has 1 words"),
        ("02084071 05 n 01 dog 0 002 @ 02083346 n 0000 | a member of the genus Canis", "has 2 pointers"),
        ("02084071 05 n 01 d\udcffg 0 000 | a member of the genus Canis", "codec can't decode"),
    ],
)
def test_a_line_out_of_the_format_is_named_by_file_and_number(tmp_path: Path, line: str, reason: str):
    write_database(tmp_path)
    (tmp_path / "data.noun").write_bytes((LICENCE + line + "\n").encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptFileError) as error:
        read_wordnet(tmp_path)
    assert f"{tmp_path / 'data.noun'}, line 3," in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path):
    write_database(tmp_path, adv=LICENCE + LINES["data.adv"][0][:-20])
    with pytest.raises(CorruptFileError, match=r"data\.adv, line 3, .*cut short"):
        read_wordnet(tmp_path)


def test_a_missing_folder_or_file_is_one_line_that_names_the_package(database: Path, tmp_path: Path):
    (database / "data.verb").unlink()
    for folder, name in ((tmp_path / "nowhere", "data.noun"), (database, "data.verb")):
        with pytest.raises(FileError) as error:
            read_wordnet(folder)
        assert f"{folder} has no {name}" in str(error.value)
        assert "wordnet-base" in str(error.value)
        assert "\n" not in str(error.value)


def test_without_a_folder_the_variables_come_before_the_usual_places(database: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("latentloom.delta.wordnet.USUAL_FOLDERS", (database / "a", database / "b"))
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.delenv("WNHOME", raising=False)
    with pytest.raises(FileError, match="sudo apt install wordnet-base, or set WNSEARCHDIR"):
        read_wordnet()
    (database / "b").mkdir()
    write_database(database / "b", noun=LICENCE)
    assert len(read_wordnet()) == 4
    (database / "dict").mkdir()
    write_database(database / "dict", noun=LICENCE, verb=LICENCE)
    monkeypatch.setenv("WNHOME", str(database))
    assert len(read_wordnet()) == 3
    monkeypatch.setenv("WNSEARCHDIR", str(database))
    assert len(read_wordnet()) == 7
    monkeypatch.setenv("WNSEARCHDIR", str(database / "nowhere"))
    with pytest.raises(FileError, match="nowhere has no"):
        read_wordnet()


@given(st.text(alphabet='ab "();:,.', max_size=30))
def test_a_definition_begins_its_gloss_and_stays_as_it_is_when_read_again(gloss: str):
    short = definition(gloss)
    assert gloss.lstrip().startswith(short)
    assert definition(short) == short
    if "(" not in gloss:
        assert '"' not in short


def test_the_installed_database_is_read_whole():
    folder = next((folder for folder in USUAL_FOLDERS if all((folder / name).is_file() for name in FILES)), None)
    if folder is None:
        pytest.skip("needs WordNet's database: apt install wordnet-base")
    pairs = read_wordnet(folder)
    assert len(pairs) == 117_658, "WordNet 3.0 has 117,659 synsets, of which one defines itself"
    assert pairs[0][0] == "entity"
    assert (
        "flying fish",
        "tropical marine fishes having enlarged winglike fins used for brief gliding flight",
    ) in pairs
    assert sum('"' in gloss for _, gloss in pairs) < 10
    assert not any("_" in term or term.endswith(("(p)", "(a)", "(ip)")) for term, _ in pairs)
    neutral = read_wordnet(folder, NEUTRAL)
    assert len(neutral) == 20_720
    assert set(neutral) <= set(pairs)
