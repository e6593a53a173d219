"""`--set`: one grammar for the recipes of both programs."""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from pipeline.config.recipes import load_config
from recipes import assignments
from recipes.assignments import override
from recipes.settings import Settings
from trainer import config_files


class Color(enum.StrEnum):
    RED = "red"
    NONE = "none"


@dataclasses.dataclass(frozen=True)
class Part(Settings):
    size: int = 1
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Other(Settings):
    name: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Whole(Settings):
    number: int = 0
    share: float = 0.5
    bound: float | None = None
    is_on: bool = False
    name: str = ""
    title: str | None = None
    kind: Literal["", "float32", "bfloat16"] = ""
    color: Color = Color.RED
    pair: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    pattern: str | tuple[str, ...] = ""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    part: Part = Part()
    parts: tuple[Part, ...] = (Part(), Part(2))
    maybe: Part | None = None
    choice: Part | Other = Part()
    rules: tuple[Callable[[int], bool], ...] = ()
    low: int = 0
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low}: expected at most high={self.high}")


SPELLINGS = {
    "number=-3": -3,
    "number=1_000": 1000,
    "number= 7 ": 7,
    "share=1e-3": 0.001,
    "share=2": 2.0,
    "share=-.5": -0.5,
    "bound=1": 1.0,
    "bound=none": None,
    "bound=None": None,
    "bound=null": None,
    "is_on=true": True,
    "is_on=True": True,
    "is_on=false": False,
    "name=7": "7",
    "name=true": "true",
    "name=none": "none",
    "name=": "",
    "name=a=b": "a=b",
    "name=gs://b/a-*.tar": "gs://b/a-*.tar",
    "name=[ab]?{c,d}.tar": "[ab]?{c,d}.tar",
    "name=it's here": "it's here",
    "name='quoted text'": "quoted text",
    'name="7"': "7",
    "name=a\\d": "a\\d",
    "name=caf\u00e9": "caf\u00e9",
    "title=null": None,
    "title='null'": "null",
    "title=word": "word",
    "kind=bfloat16": "bfloat16",
    "kind='bfloat16'": "bfloat16",
    "kind=": "",
    "color=none": Color.NONE,
    "pair=3,4": (3, 4),
    "pair=(3, 4)": (3, 4),
    "pair=[3, 4]": (3, 4),
    "pair.1=5": (1, 5),
    "names=en": ("en",),
    "names=en,de": ("en", "de"),
    "names='en','de'": ("en", "de"),
    "names=[en, de]": ("en", "de"),
    "names=('en',)": ("en",),
    "names=1,2": ("1", "2"),
    "names=a/b.tar,c-d": ("a/b.tar", "c-d"),
    "names=": (),
    "names=()": (),
    "shares=1": (1.0,),
    "shares=1,2.5": (1.0, 2.5),
    "pattern=a,b": "a,b",
    "pattern=('a', 'b')": ("a", "b"),
    "weights={'a': 1}": {"a": 1.0},
    "weights={a: 1, b: .5}": {"a": 1.0, "b": 0.5},
    "weights={}": {},
    "weights.a=2": {"a": 2.0},
    "part.size=4": Part(4),
    "part={size: 4}": Part(4),
    "parts.1.name=b": (Part(), Part(2, "b")),
    "parts.0={'size': 9}": (Part(9), Part(2)),
    "parts=[{size: 3}]": (Part(3),),
    "maybe=none": None,
    "maybe={size: 2}": Part(2),
    "choice={'class': Other, name: x}": Other("x"),
    "rules=": (),
}


@pytest.mark.parametrize(("assignment", "value"), SPELLINGS.items())
def test_a_value_is_spelled_as_it_is_meant(assignment, value):
    name = assignment.partition("=")[0].partition(".")[0]
    found = getattr(override(Whole(), [assignment]), name)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert list(map(type, found)) == list(map(type, value))


WRONG = {
    "number": "--set number: expected a.b=value",
    "number=many": "number='many': expected int, a whole number",
    "number=2.0": "number=2.0: expected int, a whole number",
    "number=true": "number=True: expected int, a whole number",
    "number=": "number='': expected int, a whole number",
    "number=none": "number=None: expected int, a whole number",
    "number=007": "number='007': expected int, a whole number",
    "number=1+1": "number='1+1': expected int, a whole number",
    "share=nan": "share='nan': expected float, a finite number",
    "share=1e999": "share=inf: expected float, a finite number",
    "share=1" + "0" * 400: "expected float, a finite number",
    "bound=x": "bound='x': expected float, a finite number or None",
    "is_on=1": "is_on=1: expected True or False",
    "is_on=yes": "is_on='yes': expected True or False",
    "kind=int8": "kind='int8': expected '' or 'float32' or 'bfloat16'",
    "color=blue": "color='blue': expected one of red, none",
    "pair=3": "pair=3: expected (3, 3)",
    "pair=3,x": "pair='3,x': expected",
    "pair=1,2,3": "pair=(1, 2, 3): expected 2 values",
    "pair.2=1": "index '2': expected 0 to 1",
    "pair.-1=1": "index '-1': expected 0 to 1",
    "names.0=a": "index '0': expected none, as it is empty",
    "weights=3": "weights=3: expected a dict of str to float",
    "weights={a: 1/x/}": "expected a dict with texts in quotes, such as {'a': 'a/b'}",
    "weights={a: x}": "weights.a='x': expected float",
    "part=3": "this field is set in a recipe, or through its own fields",
    "part={seize: 1}": "no field 'part.seize' (nearest: size), expected one of",
    "part={size: x}": "part.size='x': expected int",
    "part.seize=1": "no field 'seize' (nearest: size), expected one of size, name",
    "number.x=1": "no field 'x', as number=0 has no fields",
    "maybe.size=1": "no field 'size', as maybe=None has no fields",
    "choice={name: x}": "expected 'class': Part or Other",
    "choice={'class': Whole}": "expected 'class': Part or Other",
    "rules=FewWords": "this field is set in a recipe, or through its own fields",
    "rules=[{'class': 'Few'}]": "this field is set in a recipe, or through its own",
    "nmaes=a": "no field 'nmaes' (nearest: names), expected one of number, share",
    "=3": "--set =3: expected a.b=value",
    "part..size=3": "--set part..size=3: expected a.b=value",
    "names=[a/b, c]": "expected a list with texts in quotes, such as ['a/b', 'c']",
    "part={name: a/b}": "a dict with texts in quotes, such as {'name': 'a/b'}",
    "names.0.x=3": "index '0': expected none, as it is empty",
    "low=11": "low=11: expected at most high=10",
}


@pytest.mark.parametrize(("assignment", "message"), WRONG.items())
def test_a_value_that_cannot_be_meant_is_named(assignment, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        override(Whole(), [assignment])
    assert str(error.value).startswith(f"--set {assignment[:70]}")
    assert message in str(error.value)


def test_fields_that_depend_on_each_other_change_together():
    changed = override(Whole(), ["low=20", "high=30"])
    assert (changed.low, changed.high) == (20, 30)
    with pytest.raises(ValueError, match=r"^low=30: expected at most high=20$"):
        override(Whole(), ["low=30", "high=20"])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["a=1", "a=1"], "--set a=1: expected a once"),
        (["a={}", "a.b=1"], "--set a={}: expected a.b once"),
        (["a.b=1", "a={}"], "--set a={}: expected a.b once"),
    ],
)
def test_a_field_is_set_once(typed, expected):
    with pytest.raises(ValueError, match=expected):
        assignments.expect_once("--set", typed)
    assignments.expect_once("--set", ["a=1", "ab=1", "b.a=1"])


def change_curation(assignment: str) -> Any:
    return override(load_config("curation_configs/demo.py"), [assignment])


def change_training(assignment: str) -> Any:
    return config_files.load("trainer/configs/demo.py", [assignment])


@pytest.mark.parametrize(
    ("change", "assignment", "message"),
    [
        (change_curation, "selektion.x=1", "no field 'selektion' (nearest: selection)"),
        (change_training, "optimiser.x=1", "no field 'optimiser' (nearest: optimizer)"),
        (change_curation, "encoder.batch_size=many", "batch_size='many': expected int"),
        (change_training, "data.batch_size=many", "batch_size='many': expected int"),
        (change_curation, "encoder.dtype=int8", "expected 'float32' or 'bfloat16'"),
        (change_curation, "granularities.9.dtype=float32", "index '9': expected 0 to"),
        (
            change_curation,
            "selection.language.languages=english",
            "languages='english': expected codes",
        ),
        (
            change_curation,
            "selection.drop_rules=FewWords",
            "this field is set in a recipe",
        ),
        (change_training, "data.granularity_weights.x.y=1", "no field 'y'"),
    ],
)
def test_both_programs_refuse_in_the_same_words(change, assignment, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        change(assignment)
    assert str(error.value).startswith(f"--set {assignment}: ")
    assert message in str(error.value)


@pytest.mark.parametrize("change", [change_curation, change_training])
@pytest.mark.parametrize(
    "assignment",
    [
        "x" * 5000,
        "x" * 5000 + "=1",
        "rng_seed=" + "9" * 5000,
        "n_steps=" + "(" * 5000,
        "rng_seed={[]: 1}",
        "encoder.batch_size=" + "9" * 5000,
        "a" + ".a" * 5000 + "=1",
        "n_steps=\0",
    ],
)
def test_an_error_is_one_bounded_line(change, assignment):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        change(assignment)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)
