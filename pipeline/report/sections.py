"""The sections of the page, as plain values for the template.

In: the data of the page. Out: texts, numbers and coordinates. Every text from the web
has gone through `visible`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import records
from pipeline.config.fingerprint import to_json
from pipeline.engine.run_folder import SET_ROLES, RunFolder
from pipeline.report import (
    caption_sections,
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
from pipeline.report.encoder_pictures import EncoderPicture
from pipeline.report.page_data import N_EXAMPLES, PageData, pairs_near_seeds
from pipeline.report.pair_facts import PairFacts
from pipeline.report.run_comparison import OtherRun
from pipeline.report.select_steps import UNKNOWN
from pipeline.selection import reference_accounts
from recipes.safe_text import visible

_N_LANGUAGES = 20

_NOT_DROPPED = (records.KEPT, records.UNREADABLE)
_NEAR_EVALUATION = {
    "id": "near-evaluation",
    "title": "Near an evaluation image",
    "explanation": (
        "Left the dropped pair, right the evaluation image that it resembles."
    ),
}
_NEAR_SEEDS = {
    "id": "near-seeds",
    "title": "Near a curated seed",
    "explanation": "Left a kept pair, right the seed that is nearest to it.",
}


def make_sections(
    data: PageData, other: OtherRun | None, pictures: Sequence[EncoderPicture] = ()
) -> dict[str, Any]:
    """Returns all values of the template except the pictures of pairs.

    Args:
      data: The data of the page.
      other: The run that `data` was compared with.
      pictures: What an encoder sees.
    """
    counts, run = data.counts, data.run
    dropped = {o: n for o, n in counts.items() if o not in _NOT_DROPPED}
    largest = max(dropped, key=lambda outcome: dropped[outcome])
    captioned = data.examples(records.KEPT) if run.config.granularities else []
    page = {
        "name": visible("/".join(run.root.rstrip("/").split("/")[-2:]), 120),
        "n_read": data.n_read,
        "n_kept": counts[records.KEPT],
        "n_unreadable": counts[records.UNREADABLE],
        "n_dropped": sum(dropped.values()),
        "largest": _largest(largest, dropped[largest]),
        "funnel": _funnel(data),
        **_sources(data.ledger),
        "sets": _sets(data.ledger),
        "sliders": _sliders(data),
        "sample_note": _sample_note(data),
        "histogram_note": _histogram_note(data),
        "histograms": _histograms(data),
        "reasons": _reasons(data),
        "kept": _make_cards(data.examples(records.KEPT)),
        "side_by_side": _side_by_side(data),
        "captions": caption_sections.list_captions(data, captioned),
        **caption_sections.describe_texts(data, captioned),
        "encoder_pictures": pictures,
        **_languages(data.scan),
        "times": run_costs.read_times(run.root),
        "costs": run_costs.read_costs(run.root),
        "against": _against(data, other),
        "settings": _settings(run),
        "decisions": run.pool_fingerprint,
    }
    return page | {"sections": _list_sections(page)}


def _largest(outcome: str, n: int) -> dict[str, Any] | None:
    return {"title": cards.outcome_title(outcome), "n": n} if n else None


def _list_sections(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    side_by_side = [(one["id"], one["title"]) for one in page["side_by_side"]]
    return [
        ("funnel", "What became of the pairs"),
        ("scores", "Scores"),
        ("reasons", "Dropped, and barely kept"),
        *side_by_side,
        *([("captions", "Captions")] if page["captions"] else []),
        *([("seen", "What the encoder sees")] if page["encoder_pictures"] else []),
        ("languages", "Languages"),
        ("time", "Time"),
        *([("against", "Against another run")] if page["against"] else []),
        ("configuration", "Configuration"),
    ]


def _sort_outcomes(data: PageData) -> list[str]:
    """Outcomes in the order of the steps; those without a step keep their position."""
    outcomes, steps = list(data.counts), [step.reason for step in data.steps]
    by_step = iter([one for one in dict.fromkeys(steps) if one in outcomes])
    return [next(by_step) if outcome in steps else outcome for outcome in outcomes]


def _funnel(data: PageData) -> list[dict[str, Any]]:
    left, rows = data.n_read, []
    for outcome in _sort_outcomes(data):
        n, is_kept = data.counts[outcome], outcome == records.KEPT
        left -= 0 if is_kept else n
        kind = outcome if outcome in _NOT_DROPPED else "dropped"
        rows.append(_funnel_row(outcome, kind, n, None if is_kept else left))
    return [*rows[:-1], _funnel_row(UNKNOWN, "only-what-if hidden", 0, None), rows[-1]]


def _funnel_row(outcome: str, kind: str, n: int, left: int | None) -> dict[str, Any]:
    title = (
        "not known from here" if outcome == UNKNOWN else cards.outcome_title(outcome)
    )
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
    columns = [charts.count_by_outcome(ledger["sources"][name]) for name in names]
    rows = [
        (cards.outcome_title(outcome), [column[outcome] for column in columns])
        for outcome in charts.count_by_outcome(ledger)
    ]
    return {"sources": [visible(name) for name in names], "by_source": rows}


def _sets(ledger: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sets that the pool was compared with, and their images that were not."""
    return [
        {
            "name": visible(name),
            "n_read": counts["read"],
            "n_compared": counts["compared"],
            "not_compared": reference_accounts.describe_missing(role, counts)
            if counts["compared"] < counts["read"]
            else "",
        }
        for role in SET_ROLES
        for name, counts in ledger.get(role, {}).items()
    ]


def _sliders(data: PageData) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in data.steps:
        measure = data.measures.get(step.measure)
        for knob in step.knobs:
            ends = threshold_sliders.slider_range(knob, step, measure)
            fields = dataclasses.asdict(knob) | ends
            fields["id"] = f"knob-{len(found)}"
            fields["step"] = round(10 ** -ends["n_decimals"], 6)
            fields["title"] = cards.outcome_title(step.reason)
            found.append(fields)
    return found


def _sample_note(data: PageData) -> str:
    n, n_all = len(data.sample), data.scan.n_readable
    if data.scan.is_census:
        return (
            f"What if: all {n:,} readable pairs are in the page, so its numbers are"
            " those of `select` for the same thresholds."
        )
    return (
        f"What if: estimated from {n:,} of {n_all:,} readable pairs, drawn by the hash"
        " of their image; in brackets a 95 % interval."
    )


def _histogram_note(data: PageData) -> str:
    n, n_all = len(data.sample), data.scan.n_readable
    of = "All" if data.scan.is_census else "A sample of"
    return f"{of} {n:,} of {n_all:,} readable pairs, also those that came to no step."


def _histograms(data: PageData) -> list[dict[str, Any]]:
    found = []
    outcomes = np.array([one.decision.outcome for one in data.sample], dtype=object)
    for name, measure in data.measures.items():
        steps = [step for step in data.steps if step.measure == name]
        reasons = [step.reason for step in steps]
        is_kept, is_here = outcomes == records.KEPT, np.isin(outcomes, reasons)
        group = np.where(is_kept, 0, np.where(is_here, 1, 2))
        lines = [
            line
            for s in steps
            for line in threshold_margins.label_thresholds(s, data.sample)
        ]
        drawn = histograms.count_values(measure, group, lines)
        found.append(charts.draw_histogram(drawn))
    return found


def _reasons(data: PageData) -> list[dict[str, Any]]:
    """Sections of all outcomes that dropped pairs."""
    return [
        {
            "outcome": outcome,
            "title": cards.outcome_title(outcome),
            "n": n,
            "explanation": cards.explain_outcome(outcome),
            "dropped": _make_cards(data.examples(outcome)),
            "barely_kept": _make_barely_kept_cards(data, outcome),
        }
        for outcome in _sort_outcomes(data)
        if (n := data.counts[outcome]) and outcome != records.KEPT
    ]


def _make_cards(found: Iterable[PairFacts]) -> list[cards.Card]:
    return [
        cards.make_card(one, cards.describe_decision(one.decision)) for one in found
    ]


def _make_barely_kept_cards(data: PageData, outcome: str) -> list[cards.Card]:
    found = []
    for step in data.steps:
        if step.reason == outcome:
            comparison = threshold_margins.compare_with_bounds(step, data.sample)
            for i in threshold_margins.find_barely_kept(step, data.sample, N_EXAMPLES):
                both = (float(comparison.value[i]), float(comparison.bound[i]))
                decision = "{}, bound {}".format(*map(cards.format_number, both))
                found.append(cards.make_card(data.sample[i], decision))
    return found[:N_EXAMPLES]


def _side_by_side(data: PageData) -> list[dict[str, Any]]:
    run = data.run
    near = data.examples(records.DropReason.NEAR_EVALUATION)
    evaluation = [(one, one.decision.detail) for one in near]
    seeds = [(one, one.seed.name) for one in pairs_near_seeds(data) if one.seed]
    found = []
    for section, lots, couples in (
        (_NEAR_EVALUATION, run.evaluation_lots, evaluation),
        (_NEAR_SEEDS, run.seed_lots, seeds),
    ):
        named = [(name, one.location) for one, name in couples]
        urls = thumbnails.draw_references(run, lots, named)
        if couples:
            described = [
                _describe_couple(one, name, urls.get((name, one.location), ""))
                for one, name in couples
            ]
            found.append(section | {"couples": described})
    return found


def _describe_couple(one: PairFacts, name: str, reference: str) -> dict[str, Any]:
    is_kept = one.decision.outcome == records.KEPT
    similarity = one.seed.similarity if is_kept and one.seed else one.decision.value
    bound = one.decision.threshold
    decision = f"cosine {cards.format_number(similarity)}"
    if bound is not None:
        decision += f", bound {cards.format_number(bound)}"
    return {
        "key": one.location.key,
        "text": visible(one.pair.alt_text),
        "name": visible(name),
        "reference": reference,
        "decision": decision,
    }


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
    flat = config_diff.flatten(to_json(run.config))
    return [(visible(path), visible(value)) for path, value in flat.items()]


def _against(data: PageData, other: OtherRun | None) -> dict[str, Any] | None:
    changes = data.changes
    if other is None or changes is None:
        return None
    here = config_diff.flatten(to_json(data.run.config))
    differences = config_diff.find_differences(here, config_diff.flatten(other.config))
    return {
        "name": visible(other.folder),
        "n_common": changes.n_common,
        "n_changed": changes.n_changed,
        "n_only_here": changes.n_only_here,
        "n_only_there": changes.n_only_there,
        "changes": [
            {
                "there": cards.outcome_title(there),
                "here": cards.outcome_title(here),
                "n": n,
                "cards": [
                    _make_changed_card(data.location_to_facts[one.location], one.other)
                    for one in changes.change_to_examples.get((there, here), ())
                ],
            }
            for (there, here), n in changes.change_to_count.items()
        ],
        "settings": [tuple(map(visible, one)) for one in differences],
    }


def _make_changed_card(one: PairFacts, there: records.Decision) -> cards.Card:
    parts = []
    for side, decision in (("there", there), ("here", one.decision)):
        why = cards.describe_decision(decision)
        outcome = cards.outcome_title(decision.outcome)
        parts.append(f"{side}: {outcome}" + (f", {why}" if why else ""))
    return cards.make_card(one, "; ".join(parts))
