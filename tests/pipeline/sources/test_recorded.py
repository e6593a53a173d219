"""Tests of what crawlers record: names, directives, failures and sizes in all forms."""

import json
import math

import pytest

from pipeline.sources import robots
from pipeline.sources.recorded import Recorded

DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")


@pytest.mark.parametrize(
    "name",
    [
        *("url", "URL", "Url", "image_url", "imageUrl", "img-url", "IMAGE URL"),
        *("image_link", "original_url", "imgSrc", "contentUrl"),
    ],
)
def test_an_address_is_found_whatever_its_name_is_written_like(name):
    assert Recorded.of({name: "https://a.org/"}).url == "https://a.org/"


@pytest.mark.parametrize(
    ("record", "url"),
    [
        ({"url": None, "URL": "u"}, "u"),
        ({"url": ["", "u", "v"]}, "u"),
        ({"json": {"url": "u"}}, "u"),
        ({"metadata": '{"url": "u"}'}, "u"),
        ({"__url__": "shard.tar"}, ""),
        ({"page_url": "u"}, ""),
        ({"url": 5}, ""),
        ([1], ""),
        ("url", ""),
    ],
)
def test_addresses(record, url):
    assert Recorded.of(record).url == url


OPT_OUTS = [
    {"x_robots_tag": "noai"},
    {"X-Robots-Tag": "NoAI, noindex"},
    {"x-robots-tag": "no-ai"},
    {"xRobotsTag": "no_ai"},
    {"X ROBOTS TAG": "X-Robots-Tag: noai"},
    {"robots": "all, noimageai"},
    {"Robots": ["all", ["index", "NOAI"]]},
    {"robots_tag": '["noai", "noindex"]'},
    {"meta_robots": "['noai']"},
    {"x_robots_tag": "all\nnoai"},
    {"x_robots_tag": r"all\nnoai"},
    {"x_robots_tag": "noai|noarchive"},
    {"x_robots_tag": "nofollow/noai"},
    {"x_robots_tag": "nofollow;noai"},
    {"x_robots_tag": "nofollow noai"},
    {"x_robots_tag": "googlebot:noai"},
    {"x_robots_tag": "b'noai'"},
    {"x_robots_tag": "{'googlebot': 'noai'}"},
    {"x_robots_tag": {"googlebot": ["noai"]}},
    {"x_robots_tag": {"noai": True, "noindex": False}},
    {"x_robots_tag": "\uff4e\uff4f\uff41\uff49"},  # as wide as Chinese characters
    {"x_robots_tag": "none"},
    {"x_robots_tag": {"googlebot": "none"}},
    {"x_robots_tag": "googlebot: none"},
    {"x_robots_tag": "max-image-preview:none, noai"},
    {"x_robots_tag": "all", "X-Robots-Tag": "noai"},
    {"noai": True},
    {"noindex": 1},
    {"headers": {"x-robots-tag": "noai"}},
    {"headers": '{"X-Robots-Tag": "noai"}'},
    {"headers": [["Server", "x"], ["X-Robots-Tag", "noai"]]},
    {"headers": [{"name": "X-Robots-Tag", "value": "noai"}]},
    {"headers": "HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\n\r\n"},
    {"response": {"headers": {"x_robots_tag": "noai"}}},
    {"meta": {"robots": "noai"}},
    {"exif": {"x-robots-tag": "noai"}},
    {"headers": ["Server: x", "X-Robots-Tag: noai"]},
    {"headers": [{"key": "X-Robots-Tag", "values": ["all", "noai"]}]},
    {"response_headers": [{"Name": "x-robots-tag", "Value": "noai"}]},
    {"meta": [{"name": "robots", "content": "noai"}]},
    {"meta": '<meta content="noai" name="robots">'},
    {"html_meta": {"robots": "noai"}},
    {"http_x_robots_tag": "noai"},
    {"response_header.x-robots-tag": "noai"},
    {"info": '{"x-robots-tag": "noai"}'},
    {"noai": "true"},
    {"x_robots_tag": "%22noai%22"},
    {"x_robots_tag": r"\u006eoai"},
    {"x_robots_tag": "no\u2011ai"},  # a hyphen that does not break
    {"x_robots_tag": "no\u00adai"},  # a soft hyphen
    {"x_robots_tag": "n\u200boai"},
    {"x_robots_tag": "NOA\u0130"},  # a capital I of Turkish
    {"x_robots_tag": "noa\u0131"},
    {"x_robots_tag": 3},
    {"x_robots_tag": True},
    {"x_robots_tag": "x" * 5000},
    {"x_robots_tag": ["all"] * 2000 + ["noai"]},
]
CONSENTS = [
    {"x_robots_tag": "all"},
    {"x_robots_tag": None},
    {"x_robots_tag": math.nan},
    {"x_robots_tag": ""},
    {"x_robots_tag": []},
    {"x_robots_tag": "None"},
    {"x_robots_tag": "['None']"},
    {"x_robots_tag": "nan"},
    {"x_robots_tag": "noaisle"},
    {"x_robots_tag": "xnoai"},
    {"x_robots_tag": "max-image-preview: none"},
    {"x_robots_tag": {"max-image-preview": "none"}},
    {"x_robots_tag": {"noai": False, "noindex": None}},
    {"noai": False},
    {"noindex": math.nan},
    {"caption": "Robots: noai"},
    {"labels": {"robots": 2}},
    {"headers": "Server: robots"},
    {"title": ["robots", "noai"]},
    {"title": "robots", "caption": "noai"},
    {"objects": [{"name": "robots", "label": "noai"}]},
    {"info": '{"name": "robots"}'},
    {"noai": "False"},
    {"noai": "None"},
    {"noindex": "0"},
]


@pytest.mark.parametrize("record", OPT_OUTS)
def test_a_directive_is_found_in_every_form(record):
    assert robots.opt_out(Recorded.of(record).robots, DIRECTIVES)
    assert robots.opt_out(
        Recorded.of_json(json.dumps(record).encode()).robots, DIRECTIVES
    )


@pytest.mark.parametrize("record", CONSENTS)
def test_what_is_no_directive_is_no_opt_out(record):
    for found in (Recorded.of(record), Recorded.of_json(json.dumps(record).encode())):
        assert robots.opt_out(found.robots, DIRECTIVES) == ""


def test_who_honors_no_directive_is_not_told_of_those_not_understood():
    assert robots.opt_out(robots.not_understood("3"), ()) == ""


def test_a_directive_may_be_one_of_the_recipe():
    found = Recorded.of({"x_robots_tag": "No-Archive"}).robots
    assert robots.opt_out(found, ("noarchive",)) == "noarchive"
    assert robots.opt_out(found, ("no_archive",)) == "no_archive"
    assert robots.opt_out("none", ("nofollow",)) == "nofollow"
    assert robots.opt_out("none", ("noai",)) == ""


def test_metadata_that_is_nested_without_end_is_no_consent():
    record: object = "noai"
    for _ in range(5000):
        record = [record]
    found = Recorded.of({"headers": record}).robots
    assert robots.opt_out(found, DIRECTIVES)


@pytest.mark.parametrize(
    ("record", "size"),
    [
        ({"original_width": 900, "original_height": 90}, (900, 90)),
        ({"original_width": 900.0, "original_height": 90.0}, (900, 90)),
        ({"Original-Width": 900, "ORIGINAL_HEIGHT": 90}, (900, 90)),
        ({"json": {"original_width": 900, "original_height": 90}}, (900, 90)),
        ({"original_width": 900}, (0, 0)),
        *(
            ({"original_width": 900, "original_height": other}, (0, 0))
            for other in (
                None,
                0,
                -90,
                "90",
                math.nan,
                math.inf,
                True,
                [90],
                10**400,
                0.5,
            )
        ),
        ({"width": 900, "height": 90}, (0, 0)),
    ],
)
def test_sizes_before_any_resizing(record, size):
    found = Recorded.of(record)
    assert (found.original_width, found.original_height) == size
