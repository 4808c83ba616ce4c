"""comparison.json: every number of a comparison, as plain data. Pure; the schema is in docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from variegate.comparison.outcomes import Outcome, mean_if_all
from variegate.comparison.plan import DUPLICATED, REAL, RETRIEVAL, Layout, Method
from variegate.cost import largest
from variegate.stages.evaluate.results import WEIGHTS
from variegate.statistics import (
    Estimate,
    bootstrap_interval,
    could_have_seen,
    holm,
    in_words,
    over_draws,
    over_draws_and_images,
    two_way,
    verdict,
)

SCHEMA = 1
Found = Mapping[str, Sequence[Outcome]]  # by method, in the order of draws


def estimate(values: Sequence[np.ndarray], same_images: bool) -> Estimate:
    """Mean of [seeds, images] values of every draw: over draws and test images where there are several draws, else over seeds
    and test images.

    Seeds are averaged inside a draw: they share its training images, so they are not independent of each other.
    `same_images`: whether all draws have one set of test images, in one order.
    """
    if len(values) == 1:
        return two_way(values[0])
    return over_draws_and_images(values, same_images)


def share_images(outcomes: Sequence[Outcome]) -> bool:
    """Whether these draws were tested on the same images."""
    return all(one.images == outcomes[0].images for one in outcomes)


def compare_methods(found: Found, baseline: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The paired differences of `names` to a baseline, Holm-corrected together; by method, an entry of `against`."""
    entries: dict[str, dict[str, Any]] = {name: {"baseline": baseline} for name in names}
    for weights in WEIGHTS:
        theirs = [one.correct[weights] for one in found[baseline]]
        gaps = {
            name: [mine.correct[weights] - other for mine, other in zip(found[name], theirs, strict=True)]
            for name in names
        }
        estimates = {name: estimate(values, share_images(found[name])) for name, values in gaps.items()}
        corrected = holm({name: one.p_value for name, one in estimates.items()})
        for name in names:
            entries[name][weights] = _difference(gaps[name], estimates[name], corrected[name], len(names))
    return entries


def _difference(gaps: Sequence[np.ndarray], found: Estimate, corrected: float, tests: int) -> dict[str, Any]:
    interval, unit = found.interval(tests), "draw" if len(gaps) > 1 else "seed"
    means = [float(gap.mean()) for gap in gaps]
    bootstrap = bootstrap_interval(means) if len(gaps) > 1 else None
    return {
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "bootstrap": list(bootstrap) if bootstrap else None,
        "p": found.p_value,
        "p_holm": corrected,
        "tests": tests,
        "detectable": interval.detectable,
        "draws": means,
        "words": in_words(interval, unit),
        "verdict": verdict(interval, unit, corrected=corrected, tests=tests),
    }


def summarise(layout: Layout, found: Found, best: str | None, num_draws: int) -> dict[str, Any]:
    """One entry of `shots`: its methods with accuracies, differences and costs, and the answer in words."""
    own = [method for method in layout.methods if not method.same_as and method.kind != "curve"]
    names = [method.name for method in own if method.name != REAL]
    against = {REAL: compare_methods(found, REAL, names)}
    made = [method.name for method in own if method.kind not in ("real", "classic", "duplicated")]
    for base in (DUPLICATED, best, RETRIEVAL):
        rivals = [name for name in made if name != base]
        if base in names and rivals:  # what makes images has to beat these, not the other way round
            against[base] = compare_methods(found, base, rivals)
    methods = []
    for method in layout.methods:
        if method.kind == "curve":
            continue
        source = method.same_as or method.name
        entry = _method(method, found[source], layout)
        entry["against"] = [entries[source] for entries in against.values() if source in entries]
        entry["parts"] = [_part(name, found[source], found[REAL]) for name in parts_of(found)]
        entry["cost"] |= _worth(entry)
        methods.append(entry)
    return {"best_classic": best, "methods": methods, "verdict": answer(methods, best, num_draws)}


def parts_of(found: Found) -> list[str]:
    """Parts of the test images that every method was measured on in every draw."""
    outcomes = [one for draws in found.values() for one in draws]
    return [name for name in outcomes[0].parts if all(name in one.parts for one in outcomes)]


def _part(name: str, outcomes: Sequence[Outcome], real: Sequence[Outcome]) -> dict[str, Any]:
    """Accuracy on a part and its gain over real images; intervals are over draws, so one draw has none.

    Not corrected for their number: these say where a gain or a loss comes from, not whether there is one.
    """
    values, theirs = [one.parts[name] for one in outcomes], [one.parts[name] for one in real]
    gaps = [mine - other for mine, other in zip(values, theirs, strict=True)]
    reached, gained = _spread(values), _spread(gaps)
    edges = ((key, reached[key]) for key in ("low", "high"))
    bounds = {key: None if edge is None else float(np.clip(edge, 0.0, 1.0)) for key, edge in edges}
    return {
        "part": name,
        "accuracy": reached["mean"],
        **bounds,
        "gain": {"difference": gained["mean"], "low": gained["low"], "high": gained["high"], "draws": gaps},
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if len(values) < 2 or not np.ptp(values):  # draws that agree to the last digit say nothing of how far others may be
        return {"mean": float(np.mean(values)), "low": None, "high": None}
    found = over_draws(values).interval()
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _method(method: Method, outcomes: Sequence[Outcome], layout: Layout) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "method": method.name,
        "kind": method.kind,
        "recipe": method.of or None,
        "same_as": method.same_as or None,
        "run": method.run,
        "arm": method.arm.name,
    }
    for weights in WEIGHTS:
        interval = estimate([one.correct[weights] for one in outcomes], share_images(outcomes)).interval()
        entry[weights] = {
            "accuracy": interval.mean,
            "low": max(interval.low, 0.0),
            "high": min(interval.high, 1.0),
            "val_accuracy": mean_if_all([value for one in outcomes for value in one.val[weights]]),
        }
    entry["draws"] = [
        {
            "draw": draw,
            "seeds": [
                {
                    "seed": seed,
                    **{w: {"test_accuracy": one.test(w)[seed], "val_accuracy": one.val[w][seed]} for w in WEIGHTS},
                }
                for seed in range(len(one.val["selected"]))
            ],
        }
        for draw, one in enumerate(outcomes)
    ]
    entry["cost"] = _cost(outcomes)
    entry["shown"] = [dict(row) for row in outcomes[0].shown]
    entry["copies"] = _copies(outcomes)
    entry["class_agreement"] = mean_if_all(
        [one.drawn_classes.agreement if one.drawn_classes else None for one in outcomes]
    )
    entry["drawn_as_others"] = [
        {"draw": draw, **row}
        for draw, one in enumerate(outcomes)
        for row in (one.drawn_classes.drawn_as_others if one.drawn_classes else ())
    ]
    return entry


def _copies(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Copies of training images among the drawn ones of all draws; those of the first draw are shown."""
    found = [one.copies for one in outcomes if one.copies]
    if not found:
        return None
    counts = {key: sum(one[key] for one in found) for key in ("images", "kept", "copies", "copies_kept")}
    return {**counts, "shown": list(found[0]["shown"])}


def _cost(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over draws, and of memory the most of any draw."""
    parts = list(dict.fromkeys(key for one in outcomes for key in one.cost["seconds"]))
    seconds = {key: float(np.mean([one.cost["seconds"].get(key, 0.0) for one in outcomes])) for key in parts}
    none = {"drawn": 0, "kept": 0}
    images = {key: float(np.mean([(one.synthetic or none)[key] for one in outcomes])) for key in none}
    energy = [_sum_if_all(list(one.cost["energy_j"].values())) for one in outcomes]
    memory = {key: largest([one.cost["memory_mb"].get(key) for one in outcomes]) for key in parts}
    return {
        "seconds": seconds,
        "total_seconds": sum(seconds.values()),
        "energy_j": mean_if_all(energy),
        "images_drawn": images["drawn"],
        "images_kept": images["kept"],
        "unet_evaluations": float(np.mean([one.cost["unet_evaluations"] for one in outcomes])),
        "memory_mb": memory,
        "peak_memory_mb": largest(memory.values()),
        "made_elsewhere": any(one.cost["made_elsewhere"] for one in outcomes),
    }


def _sum_if_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _worth(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """Gain over real images for each minute beyond training, which every arm needs; None where nothing else was done, or
    was done elsewhere at a cost that is not known."""
    if entry["cost"]["made_elsewhere"]:
        return {"gain_per_minute": None}
    gain = next((one["selected"]["difference"] for one in entry["against"] if one["baseline"] == REAL), None)
    extra = entry["cost"]["total_seconds"] - entry["cost"]["seconds"].get("train", 0.0)
    return {"gain_per_minute": gain * 60.0 / extra if gain is not None and extra > 0 else None}


def summarise_curve(points: Mapping[str, Sequence[Outcome]], values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Validation accuracy at every value, with an interval over draws; `values` are by method name."""
    return [
        _point(values[name], [mean_if_all(one.val["selected"]) for one in outcomes])
        for name, outcomes in points.items()
    ]


def over_shots(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Validation accuracy over the number of shots, of every method that all `parts` (entries of `shots`) have; none for one."""
    tables = [{method["method"]: method for method in part["methods"]} for part in parts]
    names = [name for name, method in tables[0].items() if not method["same_as"] and all(name in one for one in tables)]
    return [
        {
            "method": name,
            "kind": tables[0][name]["kind"],
            "key": "dataset.shots",
            "points": [
                _point(str(part["shots"]), _val_of_draws(table[name]))
                for part, table in zip(parts, tables, strict=True)
            ],
        }
        for name in (names if len(parts) > 1 else ())
    ]


def _val_of_draws(method: Mapping[str, Any]) -> list[float | None]:
    return [mean_if_all([seed["selected"]["val_accuracy"] for seed in draw["seeds"]]) for draw in method["draws"]]


def _point(value: str, draws: Sequence[float | None]) -> dict[str, Any]:
    known = [one for one in draws if one is not None]
    interval = over_draws(known).interval() if len(known) > 1 and np.ptp(known) else None
    return {
        "value": value,
        "val_accuracy": mean_if_all(draws),
        "low": max(interval.low, 0.0) if interval else None,
        "high": min(interval.high, 1.0) if interval else None,
        "draws": list(draws),
    }


# ------------------------------------------------------------------------------------------------ in words


def answer(methods: Sequence[Mapping[str, Any]], best: str | None, num_draws: int) -> str:
    """What the comparison says: who beats the best classic augmentation, else whether classic is enough."""
    hard = best or REAL
    label = f"the best classic augmentation ({best})" if best and best != REAL else "real images alone"
    candidates = [(m, gain) for m in methods if m["recipe"] and (gain := _gain(m, hard)) and not m["same_as"]]
    winners = [(m, gain) for m, gain in candidates if gain["verdict"].startswith("helps")]
    caution = "" if num_draws > 1 else " One draw says nothing of other training images."
    if winners:
        first, gain = max(winners, key=lambda one: one[1]["difference"])
        return f"{first['method']} beats {label}: {gain['words']}.{_beside_retrieval(first)}{caution}"
    open_ones = [
        (m, gain) for m, gain in candidates if "after correction" in gain["verdict"] and gain["difference"] > 0
    ]
    if open_ones:
        first, gain = max(open_ones, key=lambda one: one[1]["difference"])
        limit = (
            f"; {first['method']} comes nearest: {gain['words']}, left open by correction for {gain['tests']} methods"
        )
        limit += f" (p {gain['p']:.3f}, corrected {gain['p_holm']:.3f}): more draws would tell"
    else:
        unit = "draw" if num_draws > 1 else "seed"
        limit = f"; {_limits([gain['detectable'] for _, gain in candidates], unit)}" if candidates else ""
    classic = next((m for m in methods if m["method"] == best), None)
    gain = _gain(classic, REAL) if classic and best != REAL else None
    none = f"No recipe was seen to beat {label}{limit}." if candidates else ""
    if gain and gain["verdict"].startswith("helps"):
        enough = f"Classic augmentation is enough here: {best} gains {gain['words']} over real images alone."
        return " ".join(part for part in (enough, none) if part) + caution
    return (none or "No difference between classic augmentations was seen.") + caution


def _beside_retrieval(winner: Mapping[str, Any]) -> str:
    """Whether images of the pool would have done as well; nothing without a pool."""
    gain = _gain(winner, RETRIEVAL)
    if gain is None:
        return ""
    if gain["verdict"].startswith("helps"):
        return f" It beats images retrieved from the pool, too: {gain['words']}."
    if gain["verdict"].startswith("hurts"):
        return f" Images retrieved from the pool do better still: {winner['method']} less those is {gain['words']}."
    return f" Images retrieved from the pool may do as well: {winner['method']} less those is {gain['words']}."


def _limits(detectable: Sequence[float], unit: str) -> str:
    """What each candidate's difference would have had to be, from the surest to the least sure one."""
    least, most = min(detectable), max(detectable)
    if least >= 1.0 or f"{most:.3f}" == f"{least:.3f}":
        return could_have_seen(least, unit)
    upper = f"{100 * most:.1f} points" if most < 1.0 else "more than there is"
    return f"{could_have_seen(least, unit).removesuffix(' points')} to {upper}, by recipe"


def _gain(method: Mapping[str, Any] | None, baseline: str) -> Mapping[str, Any] | None:
    entries = method["against"] if method else ()
    return next((entry["selected"] for entry in entries if entry["baseline"] == baseline), None)
