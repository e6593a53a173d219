"""Files of captions are read as they are meant, or refused with their place."""

import json

import pytest

from pipeline import photos
from pipeline.sources import caption_files
from pipeline.sources.caption_files import Entry

DOG, GIRLS = Entry("0.jpg", ("A dog, in a yard",)), Entry("1.jpg", ("Two girls",))
CSV = 'file_name,caption\n0.jpg,"A dog, in a yard"\n1.jpg,Two girls\n'


def entries(tmp_path, content, name="captions.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return caption_files.read(path)


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r"),
        CSV.rstrip(),
        CSV.replace("\n", "\n\n"),
        CSV + ",\n , \n",
        "\n" + CSV,
        "\ufeff" + CSV,
        CSV.encode("utf-16"),
        b"\xfe\xff" + CSV.encode("utf-16-be"),
        CSV.replace("file_name,caption", " File_Name , CAPTION "),
        CSV.replace("file_name,caption", '"file_name","caption"'),
        CSV.replace(",T", ", T").replace(',"', ', "'),
        "file_name;caption\n0.jpg;A dog, in a yard\n1.jpg;Two girls\n",
        "file_name\tcaption\n0.jpg\tA dog, in a yard\n1.jpg\tTwo girls\n",
        "file_name|caption\n0.jpg|A dog, in a yard\n1.jpg|Two girls\n",
        ',image,caption\n0,0.jpg,"A dog, in a yard"\n1,1.jpg,Two girls\n',
    ],
)
def test_a_table_is_read_whatever_its_separators_ends_and_marks(tmp_path, content):
    assert entries(tmp_path, content) == [DOG, GIRLS]


@pytest.mark.parametrize(
    "end", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1e"]
)
@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.json"])
def test_what_only_unicode_calls_an_end_of_line_is_part_of_a_text(tmp_path, end, name):
    text = f"A dog{end}in a yard"
    row = json.dumps({"file_name": "0.jpg", "caption": text}, ensure_ascii=False)
    content = {
        "c.csv": f"file_name,caption\n0.jpg,{text}\n1.jpg,Two girls\n",
        "c.jsonl": row + '\n{"file_name": "1.jpg", "caption": "Two girls"}\n',
        "c.json": f'[{row}, {{"file_name": "1.jpg", "caption": "Two girls"}}]',
    }[name]
    assert entries(tmp_path, content, name) == [Entry("0.jpg", (text,)), GIRLS]


def test_quotes_hold_separators_quotes_and_line_ends(tmp_path):
    content = 'file,text\n0.jpg,"A ""big"" dog,\r\nand a cat"\n1.jpg,A 5" nail\n'
    assert entries(tmp_path, content) == [
        Entry("0.jpg", ('A "big" dog,\r\nand a cat',)),
        Entry("1.jpg", ('A 5" nail',)),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n", "line 1: a, b: expected a column file_name or file"),
        ("file,caption\n0.jpg,A dog, a cat\n", "line 2: 3 fields, expected 2 as in"),
        ("file,caption\n0.jpg,A\n\n1.jpg,B,\n", "line 4: 3 fields, expected 2 as in"),
        ("file,caption\n0.jpg\n", "line 2: 1 fields, expected 2 as in the header"),
        ("file;caption\n0.jpg;A;B\n", "a text with ';' in it needs quotes"),
        ("file\tcaption\n0.jpg\tA\tB\n", r"a text with '\t' in it needs quotes"),
        (
            'file,caption\n0.jpg,"A\n1.jpg,B\n',
            "line 2: a quote is opened and never clo",
        ),
        ('file,caption\n0.jpg,A\n1.jpg,"A\n2.jpg,"B"\n', "line 3: ',' expected after"),
        ('file,caption\n0.jpg,"A "dog""\n', "line 2: ',' expected after '\"'"),
        (
            'file,caption\n0.jpg,"A\n1.jpg,B"\n',
            "line 2: a quote is opened and takes in",
        ),
        (
            'file,caption\n1.heif,"A\n2.heif,B\n3.heif,C"\n',
            "line 2: a quote is opened and takes in '2.heif,B'",
        ),
        (
            'file,caption\nmy 1.jpg,"A\nmy 2.jpg,B"\n',
            "line 2: a quote is opened and takes in 'my 2.jpg,B",
        ),
        (
            'id,caption,file\n1,"A,1.jpg\n2,B,2.jpg\n3,C",3.jpg\n',
            "line 2: a quote is opened and takes in '2,B,2.jpg'",
        ),
        ("file,caption\n0.jpg,A\0\n", "line 2: a null character: expected a text file"),
        (
            "file,caption\n0.jpg,A\n,B\n",
            "line 3: {'file': '', 'caption': 'B'}: expected",
        ),
        ("file,caption,Caption\n0.jpg,A,B\n", "expected one column caption"),
        ("file,caption,file\n0.jpg,A,1.jpg\n", "expected one column file"),
        (
            "file,caption\n0.jpg," + "a" * 200_000,
            "line 2: field larger than field limit",
        ),
        (
            "file,caption\n0.jpg,Un chien à\n".encode("cp1252"),
            "line 2: not utf-8: expec",
        ),
        ("file,caption\n0.jpg,A\n".encode("utf-16-le"), "a null character: expected a"),
        (b"\xff\xfea", "line 1: not utf-16: expected a file in UTF-8, or in UTF-16"),
        (b"\x89PNG\r\n", "line 1: not utf-8: expected a file in UTF-8"),
        (",".join(f"column{i}" for i in range(9999)), "expected a column file_name"),
    ],
)
def test_a_table_that_can_mean_two_things_is_refused_with_its_line(
    tmp_path, content, message
):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        entries(tmp_path, content)
    assert message in str(error.value)
    assert len(str(error.value)) < 200


NESTED = [
    {"filename": f"{i}.jpg", "sentences": [{"raw": "A dog ."}]} for i in range(99)
]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            '{"file": "0.jpg", "caption": "A"}\n{',
            "c.jsonl",
            "line 2: not JSON: Expecting",
        ),
        (
            '{"file": "a", "caption": "A"} x',
            "c.jsonl",
            "line 1: not JSON: Extra data: c",
        ),
        ("[1, 2", "c.json", "line 1: not JSON: Expecting ',' delimiter: column"),
        (
            '[{"file": "a"},\n{"file" 3}]',
            "c.json",
            "line 2: not JSON: Expecting ':' del",
        ),
        (
            "3",
            "c.json",
            "expected a list of objects, or an object of names and captions",
        ),
        ('["a"]', "c.jsonl", "entry 1: 'a': expected an object"),
        ("7", "c.jsonl", "line 1: 7: expected an object"),
        ("[" * 99999, "c.json", "JSON: "),
        ('{"a":' * 99999, "c.jsonl", "line 1: "),
        (json.dumps({"images": NESTED}), "c.json", "entry 1: {'file': 'images', 'capt"),
        (
            json.dumps(NESTED),
            "c.json",
            "entry 1: filename, sentences: expected a column",
        ),
        ('{"0.jpg": 3}', "c.json", "expected a file name, and texts as its caption"),
        ('{"0.jpg": ["A", ["B"]]}', "c.json", "expected a file name, and texts as its"),
        ('{"0.jpg": true}', "c.json", "expected a file name, and texts as its caption"),
        ('[{"image": 7, "caption": "A"}]', "c.json", "expected a file name, and texts"),
        (
            '{"0.jpg": "A", "0.jpg": "B"}',
            "c.json",
            "the key '0.jpg' comes twice, expect",
        ),
        (
            '{"file": "0.jpg", "text": "A", "text": "B"}',
            "c.jsonl",
            "line 1: the key 'text' comes twice, expected it once",
        ),
        (
            '{"0.jpg": "A \\u0000"}',
            "c.json",
            "entry 1: 'A \\x00': expected text of who",
        ),
        ('{"0.jpg": "A \\ud83d"}', "c.json", "expected text of whole characters"),
        ('{"0.jpg": 1' + "0" * 9999 + "}", "c.json", "JSON: Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_meant_is_refused_with_its_place(
    tmp_path, content, name, message
):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        entries(tmp_path, content, name)
    assert message in str(error.value)
    assert len(str(error.value)) < 220
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('[{"file": "0.jpg", "caption": "A"}]', "c.json"),
        ('[{"file": "0.jpg",\n "caption": "A"}]', "c.jsonl"),
        ('{"0.jpg": "A"}', "c.json"),
        ('{"0.jpg": ["A", null, " "]}', "c.json"),
        ('\ufeff{"File": "0.jpg", "Caption": "A"}\r\n', "c.jsonl"),
        ('{"file": "0.jpg", "caption": "A"}\n{"file": "1.jpg", "text": "B"}', "c.json"),
        (
            '{"file": "0.jpg", "caption": "A"}\r{"file": "1.jpg", "text": "B"}',
            "C.JSONL",
        ),
    ],
)
def test_json_is_read_by_what_it_holds(tmp_path, content, name):
    assert entries(tmp_path, content, name)[0] == Entry("0.jpg", ("A",))


@pytest.mark.parametrize("missing", ["null", "NaN", "[]", "[null]", '""', '" "'])
def test_an_entry_without_a_caption_is_counted(tmp_path, capsys, missing):
    content = (
        f'[{{"file": "0.jpg", "caption": {missing}}}, {{"file":"1.jpg","text":"B"}}]'
    )
    assert entries(tmp_path, content, "c.json")[0] == Entry("0.jpg", ())
    photos.read_captions(tmp_path / "c.json")
    said = "2 entries, 1 of them without a caption, 1 captions of 2 photos"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ['{"file": "a.jpg", "caption": "A"}', '{"Text": "A", "Path": "a.jpg"}']
)
def test_an_object_may_be_one_entry(tmp_path, content):
    assert entries(tmp_path, content, "a.json") == [Entry("a.jpg", ("A",))]


def test_names_of_photos_may_be_those_of_columns(tmp_path):
    content = '{"file": "A", "b.jpg": "B"}'
    assert entries(tmp_path, content, "a.json")[1] == Entry("b.jpg", ("B",))
