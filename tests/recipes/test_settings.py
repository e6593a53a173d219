"""A value of a recipe has the type of its field, or is refused by its name."""

import dataclasses
import enum
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pytest

from curation_configs import demo
from pipeline.config.captions import CaptionQuality, Granularity
from pipeline.config.curation import (
    CurationConfig,
    EncoderConfig,
    ExportConfig,
    ImageTextSource,
)
from pipeline.config.duplicates import PoolDuplicates, Resemblance, TorchDescriptor
from pipeline.config.fingerprint import fingerprint
from pipeline.config.selection import (
    KeepLanguages,
    NearestToSeeds,
    SelectionConfig,
    ShortText,
)
from pipeline.records import Drop, Pair
from pipeline.selection.rules import BoilerplateAltText, ExtremeAspect, FewWords
from recipes.settings import Settings, as_type, type_hints
from tools import config_reference
from trainer.config import SelfSupervisionConfig, TrainConfig, VisionConfig, tips_model

SOURCE = ImageTextSource("web", "x.tar")
RECIPE_CLASSES = [
    kind
    for root in (CurationConfig, TrainConfig)
    for kind in config_reference.configurations(root)
    if dataclasses.is_dataclass(kind)
]
WRONG = ["x", b"x", 1, True, 0.5, math.nan, math.inf, None, (), ("x",), {}, {1}]
WRONG += [pathlib.Path("x"), object(), FewWords, FewWords(1), [["x"]], np.zeros(2)]
WRONG += ["0.5", 10**400, 1j, lambda: 1, np.float32(math.nan), np.bool_(True), ""]


class Shade(enum.StrEnum):
    DARK = "dark"


@pytest.mark.parametrize("kind", [*RECIPE_CLASSES, *config_reference.RULES])
def test_every_dataclass_of_recipes_checks_its_types(kind):
    assert issubclass(kind, Settings)
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("kind", RECIPE_CLASSES)
def test_a_field_takes_what_has_its_type_and_refuses_all_else_by_its_name(kind):
    for name, hint in type_hints(kind).items():
        for value in WRONG:
            try:
                typed = as_type(hint, value, name)
            except ValueError as error:
                message = str(error)
                assert message.startswith((name, f"a key of {name}"))
                assert ": expected " in message
                assert "\n" not in message
                assert len(message) < 400
            else:
                assert is_of(hint, typed), (kind, name, value)


def is_of(hint: Any, value: Any) -> bool:
    """What the fields of recipes need, told apart in another way."""
    if isinstance(hint, type) and hint not in (int, float, bool, str):
        return type(value) is hint
    exact = {int: [int], float: [int, float], bool: [bool], str: [str]}
    if hint in exact:
        is_finite = not isinstance(value, float) or math.isfinite(value)
        return type(value) in exact[hint] and is_finite
    arguments = getattr(hint, "__args__", ())
    origin = getattr(hint, "__origin__", None)
    if origin is tuple:
        return type(value) is tuple and all(is_of(arguments[0], v) for v in value)
    if origin is Literal:
        return value in arguments
    if origin is Mapping:
        return type(value) is dict and all(
            is_of(arguments[1], v) for v in value.values()
        )
    if origin is Callable:
        return callable(value) and not isinstance(value, type)
    return any(value is None if a is type(None) else is_of(a, value) for a in arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: KeepLanguages("en"),
            """languages='en': expected a tuple such as ("en",)""",
        ),
        (
            lambda: SelectionConfig(opt_out_directives="noai"),
            """opt_out_directives='noai': expected a tuple such as ("noai",)""",
        ),
        (
            lambda: CaptionQuality(languages="de"),
            """languages='de': expected a tuple such as ("de",)""",
        ),
        (
            lambda: ExportConfig(drop_caption_flags="no_end"),
            """drop_caption_flags='no_end': expected a tuple such as ("no_end",)""",
        ),
        (
            lambda: BoilerplateAltText(r"\d+"),
            r"""patterns='\\d+': expected a tuple such as ("\d+",)""",
        ),
        (
            lambda: SelectionConfig(drop_rules=FewWords(2)),
            "drop_rules=FewWords(min_words=2): expected a tuple such as (FewWords(...)",
        ),
        (
            lambda: PoolDuplicates(by=Resemblance(TorchDescriptor("x"), 0.5)),
            "expected a tuple such as (Resemblance(...),)",
        ),
        (lambda: demo_with(sources=SOURCE), "a tuple such as (ImageTextSource(...),)"),
        (
            lambda: demo_with(sources="x.tar"),
            "expected a tuple of ImageTextSource(...)",
        ),
        (lambda: demo_with(sources={SOURCE}), "expected a tuple of ImageTextSource("),
        (
            lambda: KeepLanguages(None),
            "languages=None: expected a tuple of str, a text",
        ),
        (lambda: KeepLanguages(("en", 3)), "languages[1]=3: expected str, a text in q"),
        (
            lambda: KeepLanguages(("english",)),
            "languages='english': expected codes such",
        ),
        (lambda: KeepLanguages(("EN",)), "languages='EN': expected codes such as 'en'"),
        (lambda: KeepLanguages(("eng",)), "languages='eng': expected codes such as"),
        (lambda: KeepLanguages(("zh-cn",)), "languages='zh-cn': expected codes such"),
        (
            lambda: demo_with(
                language_detector="langdetect",
                caption_quality=CaptionQuality(languages=("eo",)),
            ),
            "languages='eo': expected codes such as 'en' of langdetect",
        ),
        (
            lambda: SelectionConfig(opt_out_directives=("",)),
            "opt_out_directives='': expected lower-case directives",
        ),
        (
            lambda: ImageTextSource("web", pathlib.PurePosixPath("x.tar")),
            "pattern=PurePosixPath('x.tar'): expected str, a text in quotes",
        ),
        (
            lambda: EncoderConfig(b"x"),
            "checkpoint=b'x': expected str, a text in quotes",
        ),
        (
            lambda: SelectionConfig(max_evaluation_similarity="0.9"),
            "max_evaluation_similarity='0.9': expected float, a finite number or None",
        ),
        (
            lambda: SelectionConfig(max_evaluation_similarity=math.nan),
            "max_evaluation_similarity=nan: expected float, a finite number or None",
        ),
        (lambda: ExtremeAspect(math.inf), "max_aspect=inf: expected float, a finite"),
        (lambda: ExtremeAspect(True), "max_aspect=True: expected float, a finite"),
        (lambda: ExportConfig(max_side_px=512.0), "max_side_px=512.0: expected int"),
        (lambda: FewWords(True), "min_words=True: expected int, a whole number"),
        (lambda: FewWords("3"), "min_words='3': expected int, a whole number"),
        (lambda: FewWords(None), "min_words=None: expected int, a whole number"),
        (
            lambda: SelectionConfig(drop_exact_duplicates="no"),
            "drop_exact_duplicates='no': expected True or False",
        ),
        (
            lambda: SelectionConfig(drop_exact_duplicates=1),
            "drop_exact_duplicates=1: expected True or False",
        ),
        (
            lambda: SelectionConfig(language=KeepLanguages),
            "expected KeepLanguages(...), made by calling KeepLanguages(...) or None",
        ),
        (
            lambda: SelectionConfig(drop_rules=(FewWords,)),
            "a function of one pair, as an instance, made by calling FewWords(",
        ),
        (
            lambda: SelectionConfig(drop_rules=(KeepLanguages(),)),
            "drop_rules[0]=KeepLanguages(",
        ),
        (
            lambda: SelectionConfig(alignment=0.3),
            "alignment=0.3: expected MinScore(...) or KeepFraction(...) or None",
        ),
        (lambda: ShortText("kept", 1), "policy='kept': expected 'keep' or 'drop' or"),
        (
            lambda: NearestToSeeds(set_to_k=(("a", 1),)),
            "set_to_k=(('a', 1),): expected a dict of str to int",
        ),
        (
            lambda: NearestToSeeds(set_to_k={"a": 1.5}),
            "set_to_k['a']=1.5: expected int, a whole number",
        ),
        (
            lambda: Granularity("a", "b", n_words=(1,)),
            "n_words=(1,): expected 2 values",
        ),
        (
            lambda: Granularity("a", "b", decoding={"temperature": 1}),
            "decoding={'temperature': 1}: expected Decoding(...)",
        ),
        (
            lambda: tips_model("B/14", 16),
            "position_grid=16: expected (16, 16)",
        ),
        (
            lambda: SelfSupervisionConfig(masking="blocks"),
            "masking='blocks': expected one of random, block",
        ),
        (
            lambda: SelfSupervisionConfig(ema_decay="0.9"),
            "ema_decay='0.9': expected float, a finite number",
        ),
    ],
)
def test_a_slip_is_named_with_what_was_expected(make, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        make()
    assert message in str(error.value)


def demo_with(**fields):
    return dataclasses.replace(demo.get_config(), **fields)


def test_a_misspelled_field_is_named_with_the_nearest_ones():
    message = "SelectionConfig got an unexpected keyword argument 'drop_rule', expected"
    with pytest.raises(TypeError, match=f"{message} drop_rules or drop_list"):
        SelectionConfig(drop_rule=())
    with pytest.raises(TypeError, match="'x', expected min_words"):
        FewWords(x=2)


def test_what_is_meant_is_taken_as_what_the_field_holds():
    config = demo_with(sources=[SOURCE])
    assert config.sources == (SOURCE,)
    assert hash(demo_with(sources=[SOURCE]).sources)
    assert type(FewWords(np.int64(3)).min_words) is int
    assert type(ExtremeAspect(np.float32(3)).max_aspect) is float
    assert ExtremeAspect(3).max_aspect == 3
    given = {"a": np.int16(2)}
    assert NearestToSeeds(set_to_k=given).set_to_k == {"a": 2}
    assert as_type(Shade, "dark", "shade") is Shade.DARK
    assert as_type(Any, given, "anything") is given


def test_numbers_of_numpy_and_lists_name_the_same_decisions():
    rules = [FewWords(np.int32(2)), ExtremeAspect(np.float64(3.0))]
    ours = SelectionConfig(drop_rules=(FewWords(2), ExtremeAspect(3.0)))
    assert fingerprint(SelectionConfig(drop_rules=rules)) == fingerprint(ours)


@dataclasses.dataclass(frozen=True)
class Shouting:
    """A rule as users write it."""

    max_share: float
    words: Any = ()

    def __call__(self, pair: Pair) -> Drop | None:
        return None


def test_the_fields_of_rules_that_users_write_are_checked():
    with pytest.raises(ValueError, match=r"max_share='0.9': expected float"):
        SelectionConfig(drop_rules=(Shouting("0.9"),))
    config = SelectionConfig(drop_rules=(Shouting(0.9, words={"a"}),))
    with pytest.raises(ValueError, match=r"=\{'a'\}: expected numbers, texts, tuples"):
        fingerprint(config)


def test_a_rule_with_annotations_that_are_gone_is_taken_as_it_is():
    @dataclasses.dataclass(frozen=True)
    class Rule:
        bound: "Nowhere"  # noqa: F821

        def __call__(self, pair: Pair) -> Drop | None:
            return None

    assert SelectionConfig(drop_rules=(Rule(3),)).drop_rules[0].bound == 3


def test_a_value_that_is_long_is_cut():
    with pytest.raises(ValueError, match="expected str") as error:
        EncoderConfig(["x" * 1000])
    assert len(str(error.value)) < 200


def test_types_are_checked_before_ranges_in_derived_classes():
    sizes = {"n_layers": 1, "n_heads": 1, "mlp_dim": 8}
    with pytest.raises(ValueError, match="width='8': expected int"):
        VisionConfig(width="8", **sizes)
    with pytest.raises(ValueError, match="width=0: expected more than 0"):
        VisionConfig(width=0, **sizes)
    assert tips_model("B/14", [8, 8]).vision.position_grid == (8, 8)


def test_a_function_is_asked_for_where_one_is_meant():
    rule = Callable[[Pair], Drop | None]
    with pytest.raises(ValueError, match="rule=3: expected a function of one pair"):
        as_type(rule, 3, "rule")
