import math

import numpy as np
import pytest
from scipy.cluster import hierarchy

from gradvac.geometry.record import Frame
from gradvac.geometry.similarity import (
    alignment,
    between,
    cluster,
    conflict_counts,
    contrast,
    edit_counts,
    mean_similarity,
    norm_similarity,
    regrouped,
    windows,
)


def gradients(seed: int, groups: dict[str, int], tasks: str) -> dict[tuple[str, str], np.ndarray]:
    random = np.random.default_rng(seed)
    return {(g, t): random.normal(size=size) for g, size in groups.items() for t in tasks}


def frame(step: int, vectors: dict[tuple[str, str], np.ndarray], **counts: tuple) -> Frame:
    groups = tuple(dict.fromkeys(g for g, _ in vectors))
    tasks = tuple(dict.fromkeys(t for _, t in vectors))
    gram = np.array(
        [[[vectors[g, a] @ vectors[g, b] for b in tasks] for a in tasks] for g in groups]
    )
    zero = (0,) * len(groups)
    names = ("edits", "pcgrad_edits", "comparisons")
    values = {name: counts.get(name, zero) for name in names}
    return Frame(step, tasks, groups, gram, np.ones((len(groups), len(tasks))), **values)


STEPS = [
    gradients(1, {"emb": 4, "enc": 3}, "cab"),
    gradients(2, {"emb": 4, "enc": 3}, "ad"),
    gradients(3, {"enc": 3, "dec": 5, "emb": 4}, "abc"),
]
STEPS[2]["enc", "b"][:] = 0


def cosine_of(a: np.ndarray, b: np.ndarray) -> float | None:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else None


def brute(a: str, b: str, group: str | None) -> float:
    """Mean cosine over the steps; group None is all groups of the step as one vector."""
    found = []
    for vectors in STEPS:
        groups = [g for g in dict.fromkeys(g for g, _ in vectors) if group in (None, g)]
        if groups and all((g, t) in vectors for g in groups for t in (a, b)):
            pair = [np.concatenate([vectors[g, t] for g in groups]) for t in (a, b)]
            found.append(cosine_of(*pair))
    known = [c for c in found if c is not None]
    return sum(known) / len(known) if known else math.nan


def test_mean_cosines_equal_those_of_the_vectors_while_tasks_and_groups_come_and_go() -> None:
    found = mean_similarity(frame(n * 10, v) for n, v in enumerate(STEPS))
    assert found is not None
    assert (found.tasks, found.groups) == (tuple("cabd"), ("emb", "enc", "dec"))
    assert found.steps == (0, 10, 20)
    for i, a in enumerate(found.tasks):
        for j, b in enumerate(found.tasks):
            values = [brute(a, b, g) for g in found.groups]
            assert found.cosine[:, i, j] == pytest.approx(values, abs=1e-12, nan_ok=True)
            whole = brute(a, b, None)
            assert found.whole_model[i, j] == pytest.approx(whole, abs=1e-12, nan_ok=True)
            known = [v for v in values if not math.isnan(v)]
            mean = sum(known) / len(known) if known else math.nan
            assert found.mean()[i, j] == pytest.approx(mean, abs=1e-12, nan_ok=True)
    assert np.isnan(found.mean()[0, 3])  # c and d never met


def test_the_profile_is_the_mean_over_pairs_of_different_tasks() -> None:
    found = mean_similarity([frame(0, STEPS[0])])
    assert found is not None
    for n, group in enumerate(("emb", "enc")):
        pairs = [cosine_of(STEPS[0][group, a], STEPS[0][group, b]) for a, b in ("ab", "ac", "bc")]
        assert found.by_group()[n] == pytest.approx(sum(p or 0 for p in pairs) / 3, abs=1e-12)


def test_another_order_of_tasks_moves_rows_and_columns_together() -> None:
    found = mean_similarity(frame(n, v) for n, v in enumerate(STEPS))
    assert found is not None
    moved = found.ordered(["d", "unknown", "a", "c"])
    assert moved.tasks == ("d", "a", "c")
    for i, a in enumerate(moved.tasks):
        for j, b in enumerate(moved.tasks):
            old = found.tasks.index(a), found.tasks.index(b)
            assert np.array_equal(moved.cosine[:, i, j], found.cosine[:, *old], equal_nan=True)
            assert np.array_equal(moved.whole_model[i, j], found.whole_model[old], equal_nan=True)


def test_no_frames_no_similarity() -> None:
    assert mean_similarity([]) is None
    assert edit_counts([]) is None


def test_contrast_of_labels() -> None:
    cosine = np.array([[1, 0.5, 0.1], [0.5, 1, np.nan], [0.1, np.nan, 1]])
    assert contrast(cosine, ["a", "a", "b"]) == pytest.approx((0.5, 0.1))
    same, different = contrast(cosine, ["a", "b", "c"])
    assert math.isnan(same)
    assert different == pytest.approx(0.3)


def naive_average_linkage(distance: np.ndarray) -> list[tuple[frozenset[int], float]]:
    """Merge the two clusters with the smallest mean distance until one is left."""
    clusters = [frozenset([n]) for n in range(len(distance))]
    merges = []
    while len(clusters) > 1:
        mean, a, b = min(
            (np.mean([distance[i, j] for i in a for j in b]), sorted(a), sorted(b))
            for n, a in enumerate(clusters)
            for b in clusters[n + 1 :]
        )
        merged = frozenset(a) | frozenset(b)
        clusters = [c for c in clusters if not c <= merged] + [merged]
        merges.append((merged, float(mean)))
    return merges


def test_clustering_equals_a_naive_one() -> None:
    points = np.random.default_rng(5).normal(size=(7, 4)) + 0.7
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    found = cluster(unit @ unit.T)
    sets = [frozenset([n]) for n in range(7)]
    merges = []
    for a, b, height, _ in found.linkage:
        sets.append(sets[int(a)] | sets[int(b)])
        merges.append((sets[-1], height))
    expected = naive_average_linkage(1 - unit @ unit.T)
    assert [m for m, _ in merges] == [m for m, _ in expected]
    assert [h for _, h in merges] == pytest.approx([h for _, h in expected], abs=1e-12)
    assert sorted(found.order) == list(range(7))
    for members, _ in merges:  # every cluster is contiguous in the order
        places = sorted(found.order.index(m) for m in members)
        assert places == list(range(places[0], places[0] + len(members)))
    condensed = (1 - unit @ unit.T)[np.triu_indices(7, 1)]
    true = hierarchy.cophenet(found.linkage, condensed)[0]
    assert found.cophenetic == pytest.approx(true, abs=1e-12)


def test_pairs_that_never_met_count_as_orthogonal() -> None:
    cosine = np.array([[1, 0.9, np.nan], [0.9, 1, np.nan], [np.nan, np.nan, np.nan]])
    found = cluster(cosine)
    assert found.linkage[:, 2] == pytest.approx([0.1, 1.0])
    assert math.isnan(cluster(np.array([[1, 0.2], [0.2, 1]])).cophenetic)


def test_edits_are_kept_per_step_and_group() -> None:
    first = frame(0, STEPS[0], edits=(3, 4), pcgrad_edits=(1, 0), comparisons=(6, 6))
    second = frame(10, STEPS[2], edits=(5, 1, 2), pcgrad_edits=(), comparisons=(4, 6, 6))
    counts = edit_counts([first, second])
    assert counts is not None
    assert (counts.steps, counts.groups) == ((0, 10), ("emb", "enc", "dec"))
    assert counts.edits.tolist() == [[3, 4, 0], [2, 5, 1]]
    assert counts.comparisons.tolist() == [[6, 6, 0], [6, 4, 6]]
    assert counts.pcgrad[0].tolist() == [1, 0, 0]
    assert np.isnan(counts.pcgrad[1]).all()


def test_norm_similarity_and_alignment_are_those_of_the_vectors() -> None:
    j = np.random.default_rng(2).normal(size=(3, 6)) * [[1], [5], [0]]
    gram = (j @ j.T)[None]
    for i, a in enumerate(j):
        for k, b in enumerate(j):
            squares = a @ a + b @ b
            if squares == 0:
                assert np.isnan(norm_similarity(gram)[0, i, k])
                continue
            norms = np.linalg.norm(a) * np.linalg.norm(b)
            assert norm_similarity(gram)[0, i, k] == pytest.approx(2 * norms / squares, abs=1e-14)
            # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: alignment is 1 less the relative distance.
            distance = (a - b) @ (a - b) / squares
            assert alignment(gram)[0, i, k] == pytest.approx(1 - distance, abs=1e-14)


def test_the_mean_of_another_measure() -> None:
    found = mean_similarity([frame(0, STEPS[0])], norm_similarity)
    assert found is not None
    a, b = STEPS[0]["enc", "c"], STEPS[0]["enc", "b"]
    norms = np.linalg.norm(a), np.linalg.norm(b)
    expected = 2 * norms[0] * norms[1] / (norms[0] ** 2 + norms[1] ** 2)
    assert found.cosine[1, found.tasks.index("c"), found.tasks.index("b")] == pytest.approx(
        expected
    )


def test_windows_are_means_of_consecutive_frames() -> None:
    frames = [frame(10 * n, gradients(n, {"emb": 4, "enc": 3}, "ab")) for n in range(7)]
    found = windows(iter(frames), [f.step for f in frames], 3)
    assert [w.steps for w in found] == [(0, 10, 20), (30, 40), (50, 60)]
    for w in found:
        own = mean_similarity(f for f in frames if f.step in w.steps)
        assert own is not None
        assert np.array_equal(w.cosine, own.cosine)
    assert len(windows(iter(frames), [f.step for f in frames], 50)) == 7
    assert windows([], [], 3) == []


def test_frames_with_coarser_groups_have_the_gram_of_the_longer_vectors() -> None:
    fine = frame(5, STEPS[2])
    (coarse,) = regrouped([fine], {"enc": "model", "dec": "model", "emb": "emb"})
    assert coarse.groups == ("model", "emb")
    assert coarse.step == 5
    whole = {t: np.concatenate([STEPS[2]["enc", t], STEPS[2]["dec", t]]) for t in "abc"}
    for i, a in enumerate(coarse.tasks):
        for j, b in enumerate(coarse.tasks):
            assert coarse.gram[0, i, j] == pytest.approx(whole[a] @ whole[b], abs=1e-12)


def test_inner_products_of_sums_of_gradients() -> None:
    v = STEPS[0]
    one = frame(0, v)
    groups = [["a"], ["b", "c"]]
    found = between(one.gram.sum(0), one.tasks, groups)
    whole = {t: np.concatenate([v["emb", t], v["enc", t]]) for t in "abc"}
    sums = [whole["a"], whole["b"] + whole["c"]]
    assert found == pytest.approx(np.array([[x @ y for y in sums] for x in sums]), abs=1e-12)
    assert between(one.gram.sum(0), one.tasks, [["a"], ["z"]]) is None


def test_conflicts_are_counted_where_both_have_a_gradient() -> None:
    found = conflict_counts(frame(n, v) for n, v in enumerate(STEPS))
    assert found is not None
    assert conflict_counts([]) is None
    for n, vectors in enumerate(STEPS):
        for g, group in enumerate(found.groups):
            names = [t for h, t in vectors if h == group]
            pairs = [
                (vectors[group, a], vectors[group, b])
                for i, a in enumerate(names)
                for b in names[:i]
            ]
            known = [p for p in pairs if all(np.any(x) for x in p)]
            assert found.pairs[n, g] == len(known)
            assert found.conflicts[n, g] == sum(float(a @ b) < 0 for a, b in known)


def test_a_cosine_that_was_rounded_above_one_is_no_negative_distance() -> None:
    cosine = np.array([[1, 1 + 1e-6, 0.5], [1 + 1e-6, 1, 0.5], [0.5, 0.5, 1]])
    assert cluster(cosine).linkage[:, 2] == pytest.approx([0, 0.5])
    assert hierarchy.dendrogram(
        cluster(cosine).linkage, no_plot=True
    )  # which refuses negative heights
