"""The ablation: scenes, arms that differ in one value, and the arithmetic of tables."""

import itertools
import json
import pathlib
import re

import numpy as np
import pytest
from scipy import stats

from pipeline.demo_web import scene as drawing
from tools.ablation import arms, comparison, plot, run, scenes, table, texts, web
from tools.ablation.arms import ARMS, SIZES, Arm, Expected
from trainer import config_files
from trainer.pretrained.trained_model import TrainedModel

ROOT = pathlib.Path(__file__).parents[2]
SMALL = SIZES["small"]
FOLDERS = {name: pathlib.Path("/runs") / name for name in (*ARMS, "tokenizer")}
# One value for the configuration, whatever it holds.
MAPPINGS = ("data.granularity_weights",)
CAPTIONED = re.compile(rf"\b({'|'.join(scenes.COLORS)}) ({'|'.join(scenes.SHAPES)})\b")


def picture(number: int, pairs=scenes.ALL_PAIRS) -> scenes.Picture:
    return scenes.sample_picture(np.random.default_rng(number), pairs)


@pytest.fixture(scope="module")
def crawl() -> list[web.CrawledPair]:
    return [web.draw_pair(SMALL.web, index) for index in range(60)]


def test_equal_numbers_draw_equal_pictures():
    one, same, other = picture(1), picture(1), picture(2)
    np.testing.assert_array_equal(one.rgb, same.rgb)
    np.testing.assert_array_equal(one.mask, same.mask)
    assert one.rgb.shape != other.rgb.shape or (one.rgb != other.rgb).any()


def test_a_shape_of_each_color_is_held_out_and_every_shape_is_among_them():
    assert sorted(color for color, _ in scenes.HELD_OUT) == sorted(scenes.COLORS)
    assert {shape for _, shape in scenes.HELD_OUT} == set(scenes.SHAPES)
    assert not scenes.HELD_OUT & set(scenes.SEEN_PAIRS)


def test_what_is_held_out_is_never_drawn_or_named_in_the_crawl(crawl):
    named = set()
    for pair in crawl:
        for text in (pair.alt_text, *pair.captions.values()):
            named |= set(CAPTIONED.findall(text))
    assert len(named) > len(scenes.SEEN_PAIRS) / 2
    assert not named & scenes.HELD_OUT


def test_the_evaluation_shows_what_is_held_out():
    pairs = {one.pair for i in range(20) for one in picture(i).scene.objects}
    assert pairs & scenes.HELD_OUT


def test_the_crawl_holds_every_kind_of_noise(crawl):
    assert {pair.planted for pair in crawl} == set(web.Planted)


def test_a_duplicate_has_the_bytes_of_an_earlier_pair(crawl):
    found = [i for i, p in enumerate(crawl) if p.planted is web.Planted.DUPLICATE]
    assert found
    for index in found:
        assert crawl[index].image in {earlier.image for earlier in crawl[:index]}


@pytest.mark.parametrize("number", range(8))
def test_masks_are_where_the_outlines_are(number):
    """The topmost object, by its outline; strokes may hide some of it."""
    found = picture(number)
    top = found.scene.objects[-1]
    side_px = len(found.rgb)
    inside = drawing.fill_inside(drawing.outlines(top, side_px), (side_px, side_px))
    is_class = found.mask == scenes.CLASSES.index(" ".join(top.pair)) + 1
    assert (is_class & (inside > 0)).sum() > 0.9 * is_class.sum()
    assert (is_class & (inside > 0)).sum() > 0.5 * inside.sum()


def test_masks_hold_the_objects_and_nothing_else():
    for number in range(8):
        found = picture(number)
        ids = {scenes.CLASSES.index(" ".join(o.pair)) + 1 for o in found.scene.objects}
        assert set(np.unique(found.mask)) <= {0, *ids}


def test_shapes_of_a_mask_forget_the_colors():
    mask = np.arange(len(scenes.CLASSES) + 1, dtype=np.uint8)[None]
    names = ["background", *scenes.SHAPES]
    found = [names[i] for i in scenes.shapes_of(mask)[0]]
    assert found == ["background", *(shape for _, shape in scenes.ALL_PAIRS)]


def test_colors_of_a_mask_forget_the_shapes():
    mask = np.arange(len(scenes.CLASSES) + 1, dtype=np.uint8)[None]
    found = [("", *scenes.COLORS)[i] for i in scenes.colors_of(mask)[0]]
    assert found == ["", *(color for color, _ in scenes.ALL_PAIRS)]


def test_captions_say_more_by_granularity():
    for number in range(8):
        scene = picture(number).scene
        found = texts.captions(scene)
        assert tuple(found) == texts.GRANULARITIES
        counts = [len(CAPTIONED.findall(text)) for text in found.values()]
        assert counts == [1, 2, len(scene.objects)]


def test_wrong_alt_text_names_a_color_that_is_not_there():
    for number in range(20):
        scene = picture(number).scene
        rng = np.random.default_rng(number)
        text = texts.wrong_alt_text(scene, scenes.SEEN_PAIRS, rng)
        ((color, _),) = CAPTIONED.findall(text)
        assert color not in {one.color for one in scene.objects}


def test_a_folder_with_a_web_of_another_size_is_refused(tmp_path):
    (tmp_path / "size.json").write_text(json.dumps({"n_pairs": 7}))
    with pytest.raises(ValueError, match=r"'n_pairs': 7.*expected"):
        web.write(SMALL.web, tmp_path)


def differing(arm: Arm, other: Arm, size: str) -> set[str]:
    ours, theirs = (arms.settings(x, SIZES[size], 0, FOLDERS) for x in (arm, other))
    paths = {path for path, _, _ in config_files.differences(ours, theirs)}
    of_mappings = {m for m in MAPPINGS if any(p.startswith(m) for p in paths)}
    return {p for p in paths if not p.startswith(MAPPINGS)} | of_mappings


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in ARMS if name != arms.BASE])
def test_an_arm_differs_from_its_reference_in_one_value(name, size):
    arm = ARMS[name]
    found = differing(arm, ARMS[arm.reference], size)
    if arm.teacher and not ARMS[arm.reference].teacher:
        # One value and what it cannot be without: see the next test.
        assert found == {"self_supervision.ema", "teacher", "teacher_from"}
    else:
        assert len(found) == 1


def test_a_frozen_teacher_and_its_place_are_refused_without_each_other():
    overrides = arms.overrides(ARMS["student"], SMALL, 0, FOLDERS)
    for gone in ("teacher_from=", "self_supervision.ema="):
        kept = [change for change in overrides if not change.startswith(gone)]
        with pytest.raises(ValueError, match="teacher_from"):
            config_files.load(arms.CONFIG, kept)


def test_seeds_differ_in_the_seed_alone():
    arm = ARMS["ibot"]
    first, second = (arms.settings(arm, SMALL, seed, FOLDERS) for seed in (0, 1))
    assert [*config_files.differences(first, second)] == [("rng_seed", 0, 1)]


def test_every_arm_but_references_is_compared():
    compared = {name for e in arms.EFFECTS for name in (e.arm, e.against)}
    assert compared == set(ARMS)


def test_intervals_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    for n in (2, 3, 7):
        ours, theirs = rng.normal(0.5, 0.1, (2, n))
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        found = comparison.interval_of_mean((ours - theirs).tolist())
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_one_seed_leaves_everything_open():
    assert comparison.interval_of_mean([0.3]) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("expected", "low", "high", "verdict"),
    [
        (Expected.HIGHER, 0.1, 0.2, "as the paper"),
        (Expected.HIGHER, -0.1, 0.2, "null"),
        (Expected.HIGHER, -0.2, -0.1, "opposite"),
        (Expected.LOWER, -0.2, -0.1, "as the paper"),
        (Expected.LOWER, 0.1, 0.2, "opposite"),
        (Expected.EQUAL, -0.1, 0.2, "no difference found"),
        (Expected.EQUAL, 0.1, 0.2, "opposite"),
        (Expected.HIGHER, 0.0, 0.2, "null"),
    ],
)
def test_the_verdict_hangs_on_the_interval(expected, low, high, verdict):
    assert comparison.compare_with_expected(expected, low, high) == verdict


def made_up_results() -> comparison.Results:
    """Seed 2 of `ibot` is missing."""
    rng = np.random.default_rng(0)
    numbers = {
        name: {seed: {m: rng.random() for m in table.MEASURES} for seed in range(3)}
        for name in ARMS
    }
    del numbers["ibot"][2]
    return numbers


def test_differences_are_paired_by_the_seeds_that_both_have():
    results = made_up_results()
    (effect,) = (e for e in arms.EFFECTS if e.key == "a")
    found = comparison.compare(results, effect, "zero_shot_miou")
    pairs = itertools.product(("base", "ibot"), (0, 1))
    a0, a1, b0, b1 = (results[arm][seed]["zero_shot_miou"] for arm, seed in pairs)
    assert found.n_seeds == 2
    assert found.mean == pytest.approx((a0 - b0 + a1 - b1) / 2)


def test_a_missing_arm_is_named():
    results = {**made_up_results(), "ibot": {}}
    with pytest.raises(ValueError, match="base, ibot: no seed"):
        comparison.compare_all(results)


def test_the_plot_shows_each_difference_once():
    found = comparison.compare_all(made_up_results())
    text = plot.svg(found)
    assert text.count("<circle") == len(found)


def test_a_single_seed_is_not_plotted():
    results = {arm: {0: seeds[0]} for arm, seeds in made_up_results().items()}
    with pytest.raises(ValueError, match="base and ibot: 1 seed"):
        plot.svg(comparison.compare_all(results))


def test_the_table_has_a_row_for_each_difference_and_kilobytes_for_the_state():
    found = comparison.compare_all(made_up_results())
    lines = table.effects_table(found).splitlines()
    assert len(lines) == 2 + len(found)
    for one, line in zip(found, lines[2:], strict=True):
        assert f"| {one.measure} |" in line
        assert line.endswith(f"| {one.verdict} |")
    assert [" kB" in line for line in lines[2:]] == [
        one.measure == table.BYTES for one in found
    ]


def test_the_page_names_each_comparison_and_each_change():
    page = (ROOT / "docs/ablation.md").read_text()
    for effect in arms.EFFECTS:
        assert f"`{effect.arm}` - `{effect.against}`" in page
    for arm in ARMS.values():
        assert f"| `{arm.name}` |" in page
        assert arm.change in page


@pytest.mark.parametrize("n", [0, 1000])
def test_more_workers_than_cores_are_refused_in_one_line(n, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["--output", str(tmp_path), "--workers", str(n)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --workers={n}: expected 1 to")


def test_a_training_that_was_stopped_is_not_measured(tmp_path):
    config = config_files.load(arms.CONFIG, ["n_steps=60"])
    run.check_finished(TrainedModel(tmp_path, config, 60))
    with pytest.raises(run.StoppedError, match="step 59 of 60"):
        run.check_finished(TrainedModel(tmp_path, config, 59))


def test_a_result_of_other_settings_is_refused(tmp_path):
    place = run.AblationFolder(tmp_path)
    path = place.result("ibot", 0)
    path.parent.mkdir()
    path.write_text(json.dumps({"settings_digest": "other"}))
    with pytest.raises(ValueError, match="of other settings"):
        run.run_arm(place, SMALL, ARMS["ibot"], 0, commit="")


@pytest.mark.slow
def test_a_student_and_its_teacher_are_trained_and_measured_once(tmp_path):
    command = ["--output", str(tmp_path), "--size", "tiny", "--arm", "student"]
    run.main([*command, "--seed", "1"])
    path = tmp_path / "results/student-1.json"
    first = path.stat()
    result = json.loads(path.read_text())
    assert (result["arm"], result["seed"], result["settings"]["rng_seed"]) == (
        "student",
        1,
        1,
    )
    assert (tmp_path / "results/ibot-1.json").exists()
    shares = [v for k, v in result["figures"].items() if k != table.BYTES]
    assert all(0 <= share <= 1 for share in shares)
    run.main([*command, "--seed", "1"])
    assert path.stat() == first
    with pytest.raises(SystemExit):
        run.main(["--output", str(tmp_path), "--size", "small", "--arm", "base"])
