"""Gemini as a captioner, asked through Beam's handler over HTTP on this machine."""

import dataclasses
import io
import math
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from apache_beam.io.components import adaptive_throttler
from apache_beam.utils import retry
from PIL import Image

from curation_configs.granularities import GEMINI
from pipeline.captioning import captioner_handler, failed_captions, gemini
from pipeline.captioning.stage import Caption
from pipeline.config.captions import Decoding, Granularity
from pipeline.config.prompts import IMAGE
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.models.interfaces import ServiceError
from tests.support import fake_gemini
from tests.support.fake_gemini import (
    DROP,
    FakeGemini,
    jpeg_of,
    refused,
    said,
    slowly,
    texts_of,
)
from tests.support.tiny_run import (
    SHORT,
    make_run,
    plain_rows,
    run_stage,
    write_captions,
)

MODEL = "gemini-2.5-flash"
PLAIN = Granularity("g", MODEL, "Describe {alt_text}.", captioner="gemini")
KEYS = np.arange(24, dtype=np.uint32).reshape(4, 3, 2) + 2**31
GOOD = said("a red square")


def cut_off(text: str = "", n_thoughts: int = 60) -> fake_gemini.Reply:
    """An answer that thoughts have left few tokens for."""
    reply = said(text, "MAX_TOKENS")
    reply.content["usageMetadata"]["thoughtsTokenCount"] = n_thoughts
    return reply


class Clock:
    """The clock of Beam's retries and throttling; waits are written down and over."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []

    def time(self) -> float:
        return time.time() + sum(self.waits_s)

    def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry.Clock, "sleep", lambda _, wait_s: clock.sleep(wait_s))
    monkeypatch.setattr(adaptive_throttler, "time", clock)
    return clock


@pytest.fixture
def server(monkeypatch) -> Iterator[FakeGemini]:
    for name in gemini._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", "a-key")
    with FakeGemini(lambda body, n_before: GOOD) as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        yield server


def ask(granularity=PLAIN, prompts=("Describe it.",), n_samples=1):
    """Answers on images of a color each."""
    captioner = gemini.load(granularity)
    images = [np.full((8, 12, 3), 40 * i, np.uint8) for i in range(len(prompts))]
    features = captioner.encode([captioner.prepare_image(rgb) for rgb in images])
    keys = KEYS[: len(prompts), :n_samples]
    return captioner.caption(features, prompts, granularity, keys)


def ask_one(granularity=PLAIN):
    (answer,) = ask(granularity)
    if isinstance(answer, ServiceError):
        return answer
    (caption,) = answer
    return caption


def test_a_request_has_the_image_at_its_place_and_the_decoding(server):
    decoding = Decoding(temperature=0.7, top_p=0.9)
    granularity = dataclasses.replace(PLAIN, decoding=decoding, max_new_tokens=77)
    ask(granularity, [f"See {IMAGE} and say it."])
    (body,) = server.bodies
    assert texts_of(body) == ["See ", "<jpeg>", " and say it."]
    rgb = np.asarray(Image.open(io.BytesIO(jpeg_of(body))))
    assert rgb.shape == (8, 12, 3)
    assert rgb.max() <= 2  # JPEG's rounding of black
    options = body["generationConfig"]
    assert options.pop("seed") == int(KEYS[0, 0, 0]) - 2**31
    assert options == {
        "temperature": 0.7,
        "topP": 0.9,
        "maxOutputTokens": 77,
        "thinkingConfig": {"thinking_budget": 0},
    }
    (path,), (headers,) = server.paths, server.headers
    assert path.endswith(f"/models/{MODEL}:generateContent")
    assert headers["x-goog-api-key"] == "a-key"


def test_the_image_comes_first_if_the_prompt_does_not_say_where(server):
    ask(PLAIN, ["Describe it."])
    assert texts_of(server.bodies[0]) == ["<jpeg>", "Describe it."]


def test_a_large_image_is_made_smaller_in_its_aspect_and_a_small_one_stays(server):
    captioner = gemini.load(PLAIN)
    for shape, expected in (
        ((600, 3000, 3), (205, 1024, 3)),
        ((1024, 700, 3), (1024, 700, 3)),
        ((5000, 1, 3), (1024, 1, 3)),
    ):
        jpeg = captioner.prepare_image(np.zeros(shape, np.uint8)).tobytes()
        assert np.asarray(Image.open(io.BytesIO(jpeg))).shape == expected


def test_an_answer_becomes_a_caption(server):
    server.answer = lambda body, n: said(" a red square\n", avgLogprobs=-0.25)
    caption = ask_one()
    assert (caption.text, caption.finish_reason) == ("a red square", "stop")
    assert (caption.n_tokens, caption.mean_logprob) == (3, -0.25)


def test_thoughts_are_no_part_of_a_caption(server):
    parts = [{"text": "The user wants.", "thought": True}, {"text": "a red square"}]
    server.answer = lambda body, n: said("-", content={"parts": parts})
    assert ask_one().text == "a red square"


def test_a_caption_that_is_cut_is_marked(server):
    server.answer = lambda body, n: said("a red", "MAX_TOKENS")
    assert (ask_one().text, ask_one().finish_reason) == ("a red", "length")
    assert math.isnan(ask_one().mean_logprob)  # as the server states none


def test_every_sample_is_a_request_with_a_seed_of_its_own(server):
    server.answer = lambda body, n: said(f"seed {body['generationConfig']['seed']}")
    decoding = Decoding(temperature=1.0, n_samples=3)
    granularity = dataclasses.replace(PLAIN, decoding=decoding, batch_size=2)
    answers = ask(granularity, ["a", "b"], n_samples=3)
    assert [[caption.text for caption in row] for row in answers] == [
        [f"seed {int(key[0]) - 2**31}" for key in row] for row in KEYS[:2]
    ]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (
            fake_gemini.Reply(200, {"promptFeedback": {"blockReason": "SAFETY"}}),
            "prompt blocked: SAFETY",
        ),
        (fake_gemini.Reply(200, {"candidates": []}), "no answer: no candidates"),
        (said("", "SAFETY"), "no caption: finish reason SAFETY"),
        (said("half a", "RECITATION"), "no caption: finish reason RECITATION"),
        (said("", "MAX_TOKENS"), "no caption: finish reason MAX_TOKENS"),
        (cut_off(), "no caption: finish reason MAX_TOKENS"),
        (said("", "STOP"), "no caption: finish reason STOP"),
        (
            refused(400, "INVALID_ARGUMENT", "Unable to process\n input image."),
            f"checkpoint='{MODEL}': 400 INVALID_ARGUMENT: "
            "Unable to process input image.",
        ),
    ],
)
def test_what_the_content_is_at_fault_for_is_a_failed_caption(server, reply, error):
    server.answer = lambda body, n: reply
    caption = ask_one()
    assert (caption.text, caption.finish_reason) == (error, "error")
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        refused(429, "RESOURCE_EXHAUSTED", "Quota exceeded."),
        refused(500, "INTERNAL", "An internal error."),
        fake_gemini.Reply(503, "<html>Service unavailable</html>"),
        fake_gemini.Reply(200, '{"candidates": [{"content": '),
        fake_gemini.Reply(200, {"candidates": [{"content": 7}]}),
        DROP,
    ],
    ids=["429", "500", "503", "broken JSON", "unexpected JSON", "drop"],
)
def test_trouble_of_the_service_is_waited_out(server, clock, trouble):
    server.answer = lambda body, n_before: trouble if n_before < 2 else GOOD
    assert ask_one().text == "a red square"
    assert len(server.bodies) == 3
    assert len([wait_s for wait_s in clock.waits_s if wait_s > 0]) >= 2


def test_a_request_that_takes_too_long_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(gemini, "_TIMEOUT_MS", 500)
    server.answer = lambda body, n_before: GOOD if n_before else slowly(GOOD)
    assert ask_one().text == "a red square"
    assert len(server.bodies) == 2


def test_trouble_that_lasts_is_no_failed_caption(server, clock):
    server.answer = lambda body, n_before: refused(503, "UNAVAILABLE", "Overloaded.")
    answer = ask_one()
    assert isinstance(answer, ServiceError)
    assert str(answer) == f"checkpoint='{MODEL}': 503 UNAVAILABLE: Overloaded."
    assert len(server.bodies) == 6  # Beam tries five times more


@pytest.mark.parametrize(
    "reply",
    [
        refused(400, "INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID"),
        refused(400, "FAILED_PRECONDITION", "Location is not supported."),
        refused(401, "UNAUTHENTICATED", "Who are you?"),
        refused(403, "PERMISSION_DENIED", "Not you."),
        refused(404, "NOT_FOUND", "No such model."),
    ],
)
def test_what_the_caller_is_at_fault_for_is_found_before_and_stops_a_run(server, reply):
    server.answer, server.count_tokens = (lambda body, n: reply), reply
    answer = ask_one()
    assert isinstance(answer, ServiceError)
    assert len(server.bodies) == 1
    message = reply.content["error"]["message"]
    with pytest.raises(ValueError, match=f"^checkpoint='{MODEL}': {reply.status}.*"):
        captioner_handler.check(PLAIN)
    assert message in str(answer)


def test_a_service_that_cannot_be_reached_is_left_to_the_run(server, monkeypatch):
    server.count_tokens = refused(503, "UNAVAILABLE", "Overloaded.")
    captioner_handler.check(PLAIN)
    (path,) = server.paths
    assert path.endswith(f"/models/{MODEL}:countTokens")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:1")
    captioner_handler.check(PLAIN)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"revision": "main"}, "revision='main': expected ''"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16': expected 'float32'"),
        ({"n_model_shards": 2}, "n_model_shards=2: expected 1"),
        ({"decoding": Decoding(temperature=2.5)}, "temperature=2.5: expected at most"),
    ],
)
def test_what_a_gemini_cannot_do_is_refused_before_it_is_asked(server, changes, error):
    with pytest.raises(ValueError, match=error):
        captioner_handler.check(dataclasses.replace(PLAIN, **changes))
    assert server.paths == []


@pytest.mark.parametrize("project", ["", "a-project"])
def test_missing_credentials_are_named(server, monkeypatch, project):
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", project)
    with pytest.raises(ValueError, match=r"^no credentials for .*GEMINI_API_KEY or"):
        captioner_handler.check(PLAIN)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "pipeline.captioning.gemini")
    monkeypatch.setitem(sys.modules, "google.genai", None)
    with pytest.raises(ValueError, match=r"^captioner='gemini' of .* extra \[gemini\]"):
        captioner_handler.check(PLAIN)


def run_of(tmp_path, n_rows: int, **changes) -> tuple[RunFolder, Granularity]:
    """A run whose pairs have the captions that TIPSv2's prompt names."""
    third = dataclasses.replace(GEMINI, **changes)
    first = dataclasses.replace(SHORT, name="coco")
    rows = {"a": plain_rows(n_rows)}
    run = make_run(tmp_path, rows, granularities=(first, third))
    write_captions(run, rows, [first])
    return run, third


def rows_of(run, granularity):
    tables = CaptionTables.open(run.captions(granularity))
    return list(tables.rows(run.lots[0]))


def alt_text_of(body) -> str:
    return texts_of(body)[-1].split("1. ")[1].split("\n")[0]


def test_the_prompt_of_tipsv2_shows_image_alt_text_and_first_caption(server, tmp_path):
    run, third = run_of(tmp_path, 2)
    server.answer = lambda body, n: said(f"new {alt_text_of(body)}")
    counters = run_stage(Caption(run, [third]), run.lots)
    assert counters["captions_written"] == 2
    assert [row.text for row in rows_of(run, third)] == ["new text 0", "new text 1"]
    (body,) = [body for body in server.bodies if alt_text_of(body) == "text 1"]
    assert texts_of(body) == [
        "Based on the existing captions for the image, create a new caption that "
        "accurately describes what is in the image.\n\nImage: ",
        "<jpeg>",
        "\n\nCaptions:\n1. text 1\n2. cap en 1 7 9\n\n"
        "Return just the new caption and nothing else.",
    ]


def test_a_failed_caption_is_written_and_never_asked_for_again(server, tmp_path):
    run, third = run_of(tmp_path, 3)
    blocked = said("", "SAFETY")
    server.answer = lambda body, n: blocked if alt_text_of(body) == "text 1" else GOOD
    counters = run_stage(Caption(run, [third]), run.lots)
    assert (counters["captions_written"], counters["captions_failed"]) == (2, 1)
    reasons = [row.finish_reason for row in rows_of(run, third)]
    assert reasons == ["stop", "error", "stop"]
    server.bodies.clear()
    assert run_stage(Caption(run, [third]), run.lots) == {"lots_skipped": 1}
    assert server.bodies == []


def test_answers_are_kept_when_the_service_stops_and_the_next_run_asks_for_the_rest(
    server, tmp_path
):
    run, third = run_of(tmp_path, 6, batch_size=2)
    trouble = refused(429, "RESOURCE_EXHAUSTED", "Quota exceeded.")
    server.answer = lambda b, n: trouble if alt_text_of(b) == "text 2" else GOOD
    with pytest.raises(Exception, match="429 RESOURCE_EXHAUSTED: Quota exceeded"):
        run_stage(Caption(run, [third]), run.lots)
    # The first batch and what was answered of the second; the third is not asked.
    assert [row.finish_reason for row in rows_of(run, third)] == ["stop"] * 3
    assert {alt_text_of(body) for body in server.bodies} == {
        f"text {i}" for i in range(4)
    }
    server.bodies.clear()
    server.answer = lambda body, n: GOOD
    run_stage(Caption(run, [third]), run.lots)
    asked = sorted(alt_text_of(body) for body in server.bodies)
    assert asked == ["text 2", "text 4", "text 5"]
    assert len(rows_of(run, third)) == 6


IN_VAIN = (
    "thoughts use up max_new_tokens=256: expected a larger max_new_tokens, or a model"
)


@pytest.mark.parametrize("reply", [cut_off(), cut_off("a red"), said("", "MAX_TOKENS")])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_answers_that_thoughts_use_up_stop_a_run_and_are_asked_for_again(
    server, tmp_path, reply, batch_size
):
    run, third = run_of(tmp_path, 20, batch_size=batch_size)
    server.answer = lambda body, n: reply
    with pytest.raises(Exception, match=IN_VAIN):
        run_stage(Caption(run, [third]), run.lots)
    assert 4 <= len(server.bodies) <= 6
    n_rows = len(rows_of(run, third))
    assert n_rows <= 3  # of batches before the fourth such answer
    server.bodies.clear()
    server.answer = lambda body, n: GOOD
    run_stage(Caption(run, [third]), run.lots)
    assert len(server.bodies) == 20 - n_rows


def test_some_answers_that_are_cut_off_among_others_are_failed_captions(
    server, tmp_path
):
    run, third = run_of(tmp_path, 20, batch_size=4)

    def answer(body, n):
        number = int(alt_text_of(body).split()[-1])
        return GOOD if number % 4 == 0 else cut_off("a red" if number == 1 else "")

    server.answer = answer
    counters = run_stage(Caption(run, [third]), run.lots)
    assert (counters["captions_written"], counters["captions_failed"]) == (6, 14)
    assert len(server.bodies) == 20
    reasons = [row.finish_reason for row in rows_of(run, third)]
    assert reasons[:4] == ["stop", "length", "error", "error"]


def test_a_text_that_is_longer_than_the_thoughts_is_only_long(server):
    server.answer = lambda body, n: cut_off("a b c d e f", n_thoughts=5)
    answers = ask(prompts=["a", "b", "c", "d"])
    assert [caption.finish_reason for (caption,) in answers] == ["length"] * 4


def test_the_samples_of_a_few_images_are_enough_to_stop(server):
    server.answer = lambda body, n: cut_off()
    decoding = Decoding(temperature=1.0, n_samples=3)
    granularity = dataclasses.replace(PLAIN, decoding=decoding)
    answers = ask(granularity, ["a", "b"], n_samples=3)
    assert [type(answer) for answer in answers] == [ServiceError] * 2


def test_a_granularity_of_which_all_captions_failed_is_an_error_each_time(
    server, tmp_path
):
    run, third = run_of(tmp_path, 5)
    blocked = {"text 0": "RECITATION"}
    server.answer = lambda b, n: said("", blocked.get(alt_text_of(b), "SAFETY"))
    run_stage(Caption(run, [third]), run.lots)
    message = (
        "of granularity 'gemini' to fail, but 5 of 5 did, 4 of them with: no caption:"
        " finish reason SAFETY"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            failed_captions.check(run, run.config.granularities)
    failed_captions.check(run, run.config.granularities[:1])  # the other has all


def test_no_more_failed_captions_than_allowed_are_no_error(server, tmp_path):
    run, third = run_of(tmp_path, 5)
    blocked = said("", "SAFETY")
    server.answer = lambda b, n: GOOD if alt_text_of(b) == "text 3" else blocked
    counters = run_stage(Caption(run, [third]), run.lots)
    assert counters["captions_failed"] == 4
    config = dataclasses.replace(run.config, max_failed_share=0.8)
    allowing = dataclasses.replace(run, config=config)
    failed_captions.check(allowing, run.config.granularities)


def test_the_model_name_is_the_identity_of_a_gemini(server, tmp_path):
    run, _ = run_of(tmp_path, 1)
    source = run.config.sources[0]
    encoder = "curation_configs/checkpoints/tiny-siglip"
    other = dataclasses.replace(PLAIN, name="other", checkpoint="gemini-2.5-pro")
    settings = dataclasses.replace(
        run.config,
        encoder=dataclasses.replace(run.config.encoder, checkpoint=encoder),
        granularities=(PLAIN, other),
        sources=(source,),
    )
    opened = RunFolder.open(run.root, settings)
    assert opened.model_digest(PLAIN) == MODEL
    assert opened.captions(PLAIN) != opened.captions(
        dataclasses.replace(other, name="g")
    )
