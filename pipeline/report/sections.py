"""The sections of the page, as plain values for the template.

In: what was looked at. Out: texts, numbers and coordinates; every text of the web has
gone through `visible`.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import records
from pipeline.config.fingerprint import to_json
from pipeline.engine.run_folder import SET_ROLES, RunFolder
from pipeline.report import (
    caption_facts,
    cards,
    charts,
    config_diff,
    histograms,
    run_costs,
    threshold_margins,
    threshold_sliders,
    thumbnails,
)
from pipeline.report.decision_scan import Scan
from pipeline.report.encoder_pictures import Shown
from pipeline.report.page_data import N_EXAMPLES, Looked, near_seeds
from pipeline.report.pair_facts import Examined
from pipeline.report.run_comparison import OtherRun
from pipeline.report.select_steps import UNKNOWN
from pipeline.selection import reference_accounts
from recipes.safe_text import visible

_N_LANGUAGES = 20

_NOT_DROPPED = (records.KEPT, records.UNREADABLE)
_NEAR_EVALUATION = {
    "id": "near-evaluation",
    "title": "Near an evaluation image",
    "says": "Left the dropped pair, right the evaluation image that it resembles.",
}
_NEAR_SEEDS = {
    "id": "near-seeds",
    "title": "Near a curated seed",
    "says": "Left a kept pair, right the seed that is nearest to it.",
}


def of(
    looked: Looked, other: OtherRun | None, seen: Sequence[Shown] = ()
) -> dict[str, Any]:
    """Everything that the template names, but the pictures of pairs."""
    counts, run = looked.counts, looked.run
    dropped = {o: n for o, n in counts.items() if o not in _NOT_DROPPED}
    largest = max(dropped, key=lambda outcome: dropped[outcome])
    captions = looked.examples(records.KEPT) if run.config.granularities else []
    page = {
        "name": visible("/".join(run.root.rstrip("/").split("/")[-2:]), 120),
        "n_read": looked.n_read,
        "n_kept": counts[records.KEPT],
        "n_unreadable": counts[records.UNREADABLE],
        "n_dropped": sum(dropped.values()),
        "largest": _largest(largest, dropped[largest]),
        "funnel": _funnel(looked),
        **_sources(looked.ledger),
        "sets": _sets(looked.ledger),
        "sliders": _sliders(looked),
        "sample_note": _sample_note(looked),
        "histogram_note": _histogram_note(looked),
        "histograms": _histograms(looked),
        "reasons": _reasons(looked),
        "kept": _cards(looked.examples(records.KEPT)),
        "side_by_side": _side_by_side(looked),
        "captions": _captions(looked, captions),
        **_texts(looked, captions),
        "seen": seen,
        **_languages(looked.scan),
        "times": run_costs.times(run.root),
        "costs": run_costs.costs(run.root),
        "against": _against(looked, other),
        "settings": _settings(run),
        "decisions": run.decisions_fingerprint,
    }
    return page | {"sections": _sections(page)}


def _largest(outcome: str, n: int) -> dict[str, Any] | None:
    return {"title": cards.title_of(outcome), "n": n} if n else None


def _sections(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    side_by_side = [(one["id"], one["title"]) for one in page["side_by_side"]]
    return [
        ("funnel", "What became of the pairs"),
        ("scores", "Scores"),
        ("reasons", "Dropped, and barely kept"),
        *side_by_side,
        *([("captions", "Captions")] if page["captions"] else []),
        *([("seen", "What the encoder sees")] if page["seen"] else []),
        ("languages", "Languages"),
        ("time", "Time"),
        *([("against", "Against another run")] if page["against"] else []),
        ("configuration", "Configuration"),
    ]


def _in_order(looked: Looked) -> list[str]:
    """Outcomes as steps decide on them; those without a step stay where they are."""
    outcomes, steps = list(looked.counts), [step.reason for step in looked.steps]
    by_step = iter([one for one in dict.fromkeys(steps) if one in outcomes])
    return [next(by_step) if outcome in steps else outcome for outcome in outcomes]


def _funnel(looked: Looked) -> list[dict[str, Any]]:
    left, rows = looked.n_read, []
    for outcome in _in_order(looked):
        n, is_kept = looked.counts[outcome], outcome == records.KEPT
        left -= 0 if is_kept else n
        kind = outcome if outcome in _NOT_DROPPED else "dropped"
        rows.append(_funnel_row(outcome, kind, n, None if is_kept else left))
    return [*rows[:-1], _funnel_row(UNKNOWN, "only-what-if hidden", 0, None), rows[-1]]


def _funnel_row(outcome: str, kind: str, n: int, left: int | None) -> dict[str, Any]:
    title = "not known from here" if outcome == UNKNOWN else cards.title_of(outcome)
    return {
        "outcome": outcome,
        "title": title,
        "kind": kind,
        "n": n,
        "left": left,
        "has_section": n > 0,
    }


def _sources(ledger: Mapping[str, Any]) -> dict[str, Any]:
    names = list(ledger.get("sources", {}))
    columns = [charts.by_outcome(ledger["sources"][name]) for name in names]
    rows = [
        (cards.title_of(outcome), [column[outcome] for column in columns])
        for outcome in charts.by_outcome(ledger)
    ]
    return {"sources": [visible(name) for name in names], "by_source": rows}


def _sets(ledger: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the pool was compared with, and what was left out of it."""
    return [
        {
            "name": visible(name),
            "n_read": counts["read"],
            "n_compared": counts["compared"],
            "left_out": reference_accounts.described(role, counts)
            if counts["compared"] < counts["read"]
            else "",
        }
        for role in SET_ROLES
        for name, counts in ledger.get(role, {}).items()
    ]


def _sliders(looked: Looked) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in looked.steps:
        measure = looked.measures.get(step.measure)
        for knob in step.knobs:
            ends = threshold_sliders.slider(knob, step, measure)
            fields = dataclasses.asdict(knob) | ends
            fields["id"] = f"knob-{len(found)}"
            fields["step"] = round(10 ** -ends["n_decimals"], 6)
            fields["title"] = cards.title_of(step.reason)
            found.append(fields)
    return found


def _sample_note(looked: Looked) -> str:
    n, n_all = len(looked.sample), looked.scan.n_readable
    if looked.scan.is_census:
        return (
            f"What if: all {n:,} readable pairs are in the page, so its numbers are"
            " those of `select` for the same thresholds."
        )
    return (
        f"What if: estimated from {n:,} of {n_all:,} readable pairs, drawn by the hash"
        " of their image; in brackets a 95 % interval."
    )


def _histogram_note(looked: Looked) -> str:
    n, n_all = len(looked.sample), looked.scan.n_readable
    of = "All" if looked.scan.is_census else "A sample of"
    return f"{of} {n:,} of {n_all:,} readable pairs, also those that came to no step."


def _histograms(looked: Looked) -> list[dict[str, Any]]:
    found = []
    outcomes = np.array([one.decision.outcome for one in looked.sample], dtype=object)
    for name, measure in looked.measures.items():
        steps = [step for step in looked.steps if step.measure == name]
        reasons = [step.reason for step in steps]
        is_kept, is_here = outcomes == records.KEPT, np.isin(outcomes, reasons)
        group = np.where(is_kept, 0, np.where(is_here, 1, 2))
        lines = [
            line
            for s in steps
            for line in threshold_margins.thresholds(s, looked.sample)
        ]
        drawn = histograms.histogram(measure, group, lines)
        found.append(charts.drawn_histogram(drawn))
    return found


def _reasons(looked: Looked) -> list[dict[str, Any]]:
    """Every outcome that dropped something."""
    return [
        {
            "outcome": outcome,
            "title": cards.title_of(outcome),
            "n": n,
            "says": cards.says(outcome),
            "dropped": _cards(looked.examples(outcome)),
            "barely_kept": _barely_kept(looked, outcome),
        }
        for outcome in _in_order(looked)
        if (n := looked.counts[outcome]) and outcome != records.KEPT
    ]


def _cards(found: Iterable[Examined]) -> list[cards.Card]:
    return [cards.card(one, cards.verdict_of(one.decision)) for one in found]


def _barely_kept(looked: Looked, outcome: str) -> list[cards.Card]:
    found = []
    for step in looked.steps:
        if step.reason == outcome:
            compared = threshold_margins.compared(step, looked.sample)
            for i in threshold_margins.barely_kept(step, looked.sample, N_EXAMPLES):
                both = (float(compared.value[i]), float(compared.bound[i]))
                verdict = "{}, bound {}".format(*map(cards.number, both))
                found.append(cards.card(looked.sample[i], verdict))
    return found[:N_EXAMPLES]


def _side_by_side(looked: Looked) -> list[dict[str, Any]]:
    run = looked.run
    near = looked.examples(records.DropReason.NEAR_EVALUATION)
    evaluation = [(one, one.decision.detail) for one in near]
    seeds = [(one, one.seed.name) for one in near_seeds(looked) if one.seed]
    found = []
    for section, units, couples in (
        (_NEAR_EVALUATION, run.evaluation_units, evaluation),
        (_NEAR_SEEDS, run.seed_units, seeds),
    ):
        named = [(name, one.place) for one, name in couples]
        addresses = thumbnails.of_references(run, units, named)
        if couples:
            shown = [
                _couple(one, name, addresses.get((name, one.place), ""))
                for one, name in couples
            ]
            found.append(section | {"couples": shown})
    return found


def _couple(one: Examined, name: str, reference: str) -> dict[str, Any]:
    is_kept = one.decision.outcome == records.KEPT
    similarity = one.seed.similarity if is_kept and one.seed else one.decision.value
    bound = one.decision.threshold
    verdict = f"cosine {cards.number(similarity)}"
    if bound is not None:
        verdict += f", bound {cards.number(bound)}"
    return {
        "key": one.place.key,
        "text": visible(one.pair.alt_text),
        "name": visible(name),
        "reference": reference,
        "verdict": verdict,
    }


def _captions(looked: Looked, kept: Sequence[Examined]) -> list[dict[str, Any]]:
    said = caption_facts.said_of(looked.run, kept)
    return [
        {
            "key": one.place.key,
            "text": visible(one.pair.alt_text),
            "said": [
                dataclasses.replace(caption, text=visible(caption.text))
                for caption in said[one.place.key]
            ],
        }
        for one in kept
    ]


def _texts(looked: Looked, kept: Sequence[Examined]) -> dict[str, Any]:
    """Lengths and words of alt texts and captions."""
    last = caption_facts.MAX_LENGTH
    n_words = [min(one.n_words, last) for one in looked.sample]
    alt_texts = np.bincount(np.array(n_words, np.int64), minlength=last + 1)
    nothing = caption_facts.Lengths(alt_texts, collections.Counter())
    lengths = {caption_facts.ALT_TEXT: nothing, **caption_facts.lengths(looked.run)}
    units = list(dict.fromkeys(one.unit for one in kept))
    words = caption_facts.Vocabulary.of(one.pair.alt_text for one in looked.sample)
    vocabularies = {caption_facts.ALT_TEXT: words}
    vocabularies |= caption_facts.vocabularies(looked.run, units)
    return {
        "lengths": [_length(name, one) for name, one in lengths.items()],
        "vocabularies": [(name, _bounded(one)) for name, one in vocabularies.items()],
    }


def _length(name: str, found: caption_facts.Lengths) -> dict[str, Any]:
    is_alt_text = name == caption_facts.ALT_TEXT
    return {
        "name": name,
        "n_captions": found.n_captions,
        "median": found.median,
        "n_flagged": found.n_flagged,
        "flags": None if is_alt_text else found.flags.most_common(),
    } | charts.drawn_lengths(found.counts.tolist())


def _bounded(words: caption_facts.Vocabulary) -> caption_facts.Vocabulary:
    most = tuple((visible(word, 40), n) for word, n in words.most_frequent)
    return dataclasses.replace(words, most_frequent=most)


def _languages(found: Scan) -> dict[str, Any]:
    rows = [
        {"name": visible(code) or "cannot tell", "n": n.n_pairs, "n_kept": n.n_kept}
        for code, n in list(found.code_to_count.items())[:_N_LANGUAGES]
    ]
    rest = list(found.code_to_count.values())[_N_LANGUAGES:]
    if rest:
        n, n_kept = sum(r.n_pairs for r in rest), sum(r.n_kept for r in rest)
        rows.append({"name": f"{len(rest)} others", "n": n, "n_kept": n_kept})
    return {"languages": rows, "languages_total": max(1, found.n_readable)}


def _settings(run: RunFolder) -> list[tuple[str, str]]:
    flat = config_diff.flat(to_json(run.config))
    return [(visible(path), visible(value)) for path, value in flat.items()]


def _against(looked: Looked, other: OtherRun | None) -> dict[str, Any] | None:
    changes = looked.changes
    if other is None or changes is None:
        return None
    here = config_diff.flat(to_json(looked.run.config))
    differences = config_diff.differences(here, config_diff.flat(other.config))
    return {
        "name": visible(other.folder),
        "n_common": changes.n_common,
        "n_changed": changes.n_changed,
        "n_only_here": changes.n_only_here,
        "n_only_there": changes.n_only_there,
        "changes": [
            {
                "there": cards.title_of(there),
                "here": cards.title_of(here),
                "n": n,
                "cards": [
                    _changed_card(looked.examined[one.place], one.other)
                    for one in changes.change_to_examples.get((there, here), ())
                ],
            }
            for (there, here), n in changes.change_to_count.items()
        ],
        "settings": [tuple(map(visible, one)) for one in differences],
    }


def _changed_card(one: Examined, there: records.Decision) -> cards.Card:
    parts = []
    for side, decision in (("there", there), ("here", one.decision)):
        why = cards.verdict_of(decision)
        outcome = cards.title_of(decision.outcome)
        parts.append(f"{side}: {outcome}" + (f", {why}" if why else ""))
    return cards.card(one, "; ".join(parts))
