"""Documents of every form, whole; bad ones are named."""

import re
from pathlib import Path

import pytest

from llama2c.training.documents import input_files, read_documents


def read(path: Path, **options) -> tuple[list[str], list[str]]:
    bad = []
    documents = list(read_documents(path, bad=bad.append, **options))
    return documents, [str(record).removeprefix(f"{path}:") for record in bad]


def test_documents_of_every_form(collection):
    folder, texts = collection
    files = input_files([folder / "b.jsonl", folder])
    assert [file.name for file in files] == ["b.jsonl", "a.json", "c.jsonl.gz", "d.txt", "e.json"]
    files.sort()
    assert [document for file in files for document in read(file)[0]] == texts
    assert not [record for file in files for record in read(file)[1]]


def test_text_is_kept_as_it_is(tmp_path):
    for name, data in ("t.txt", b"\xef\xbb\xbf a\r\n\tb \r"), ("t.raw", b'{"story": 1}'):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == ([data.decode()], [])
    assert read(tmp_path / "t.txt", strip=True) == (["\ufeff a\r\n\tb"], [])


def test_bad_records_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [
        b'{"story": "one"}',
        b"",
        b'{"story": "broken',
        b'["story"]',
        b'{"tale": "x"}',
        b'{"story": 5}',
        b'{"story": "\xff"}',
        b'{"story": "\\ud83d"}',
        b'{"story": ""}',
        b'{"story": null, "text": "no second choice"}',
        b'{"text": "two"}',
        b"[" * 200_000,
    ]
    path.write_bytes(b"\r\n".join(lines))
    documents, bad = read(path)
    assert documents == ["one", "two"]
    assert [record.partition(":")[0] for record in bad] == ["3", "4", "5", "6", "7", "8", "9", "10", "12"]
    reasons = [record.partition(": ")[2] for record in bad]
    assert reasons[0].startswith("not JSON: ")
    assert reasons[1:8] == [
        "expected an object, got a list",
        'no key "story" or "text"',
        "story: expected a string, got a number",
        "invalid UTF-8",
        "invalid UTF-8",
        "no text",
        "story: expected a string, got null",
    ]
    assert reasons[8].startswith("not JSON: ")
    assert read(path, key="tale")[0] == ["x"]
    assert 'no key "tale"' in read(path, key="tale")[1][0]


@pytest.mark.parametrize(
    ("text", "documents", "bad"),
    [
        ("[]", [], []),
        ("\ufeff \n[ \n]\n", [], []),
        ('[{"text": "a"},\n {"text": 1},\n {"text": "b"}]', ["a", "b"], ["2: text: expected a string, got a number"]),
        (
            '[{"text": "a"},\n {"text" "b"},{"text": "c"}]',
            ["a"],
            ["2: not JSON: Expecting ':' delimiter; .* no further"],
        ),
        ('[{"text": "a"}\n {"text": "b"}]', ["a"], ["2: not JSON: expected a comma .*; the file is read no further"]),
        ('[{"text": "a"}', ["a"], ["1: not JSON: expected a comma or the list's end; the file is read no further"]),
        ('[{"text": "a"},', ["a"], ["1: not JSON: Expecting value; the file is read no further"]),
        ('[{"text": "a"}]\n{"text": "b"}', ["a"], ["2: not JSON: text after the list"]),
    ],
)
def test_lists_that_break_off(tmp_path, text, documents, bad):
    (tmp_path / "t.json").write_text(text, encoding="utf-8")
    found, records = read(tmp_path / "t.json")
    assert found == documents
    assert len(records) == len(bad)
    for record, pattern in zip(records, bad, strict=True):
        assert re.fullmatch(pattern, record)


def test_text_files_that_are_none(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"one\ntwo\xff\nthree")
    assert read(tmp_path / "t.txt") == ([], ["2: invalid UTF-8"])
    (tmp_path / "e.txt").write_bytes(b"")
    assert read(tmp_path / "e.txt") == ([], ["1: no text"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none: no file in it is \*\.txt, \*\.json"):
        input_files([tmp_path / "none"])
    with pytest.raises(FileNotFoundError):
        input_files([tmp_path / "t.txt", tmp_path / "missing.txt"])
