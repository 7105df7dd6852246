"""Made-up tables of a finished study, for tests of its site."""

import numpy as np
import pandas as pd

from saeflow.datasets.images import ImageSplit
from saeflow.publish.site.features import FACTS, PATTERNS, ImageFeatures
from saeflow.publish.site.run import Job, by_rule, edges, longest_path, tenfold
from saeflow.publish.site.text_features import TextFeatures

SIDE, CLASSES = 8, 10
IMAGES = ImageSplit(np.random.default_rng(1).random((50, 1, SIDE, SIDE), np.float32), np.arange(50) % CLASSES)


def image_features(variant: str, n: int, seed: int = 0) -> ImageFeatures:
    """Features of an SAE: latent 7 has a hypothesis of its own, latent 5 is dead."""
    draw = np.random.default_rng(seed)
    table = pd.DataFrame({name: draw.random(n).astype(np.float32) for name in FACTS})
    table = table.assign(latent=range(n), label=draw.integers(CLASSES, size=n), promotes=0, suppresses=1)
    table = table.assign(dead=[i == 5 for i in range(n)], hypothesis=[f"fires on {i % CLASSES}" for i in range(n)])
    table.loc[5, "auroc"] = np.nan
    table.loc[7, "hypothesis"] = "fires on the planted thing </script>"
    identity = {"architecture": "ConvNet", "role": "full", "hook_point": "last.pre", "seed": 0, "variant": variant}
    table = table.assign(**identity, sae_seed=0)
    arrays = {
        **{f"pattern_{name}": draw.normal(size=(n, SIDE * SIDE)).astype(np.float32) for name in PATTERNS},
        "top_images": draw.integers(50, size=(n, 4)),
        "top_values": draw.random((n, 4)).astype(np.float32),
        "label_shares": draw.random((n, CLASSES)).astype(np.float32),
        "label_rows": np.full(CLASSES, 5),
        "ablation": draw.normal(size=(n, CLASSES)).astype(np.float32),
        "addition": draw.normal(size=(n, CLASSES)).astype(np.float32),
        "neighbours": draw.integers(n, size=(n, 5)).astype(np.int32),
        "cosines": draw.random((n, 5)).astype(np.float32),
        "image_shape": np.array([SIDE, SIDE]),
    }
    arrays["top_images"][5] = -1
    return ImageFeatures(table, arrays, n_test=360)


def text_features(n: int, seed: int = 0, *, whole_words: bool = False) -> TextFeatures:
    """Features of an SAE of a language model, with two contexts each; latent 5 is dead.

    Arguments:
        whole_words: tokens without the blank in front, 60 of them in a context.
    """
    draw = np.random.default_rng(seed)
    words = np.array([" the", " cat", " sat", ".", " </script>", "\n"])
    if whole_words:
        words = np.array(["the", "harmonica", "saxophone", "mouthpiece", ",", "a"] * 10)
    alive = [i for i in range(n) if i != 5]
    table = pd.DataFrame(
        {
            "density": draw.random(n),
            "mean_activation": draw.random(n),
            "max_activation": 1.0,
            "dead": [i == 5 for i in range(n)],
            "histogram": [[3, 2, 1]] * n,
            "bin_edges": [[0.0, 0.3, 0.6, 1.0]] * n,
            "top_tokens": [[" cat", " dog"]] * n,
            "top_logits": [[0.5, 0.25]] * n,
            "bottom_tokens": [["."]] * n,
            "bottom_logits": [[-0.5]] * n,
            "neighbours": [[(i + 1) % n] for i in range(n)],
            "neighbour_coactivation": [[0.5]] * n,
            "decoder_norm": 1.0,
        }
    )
    size = 2 * len(alive), len(words)
    values = draw.random(size) * (draw.random(size) < 0.5)
    values[:, 1] = 1.0
    contexts = pd.DataFrame(
        {
            "feature": np.repeat(alive, 2),
            "rank": np.tile([0, 1], len(alive)),
            "document": draw.integers(99, size=2 * len(alive)),
            "activation": values.max(1),
            "tokens": [words[draw.permutation(len(words))] for _ in range(2 * len(alive))],
            "activations": list(values),
        }
    )
    summary = {"model": "words", "hook_point": "model.layers.0", "variant": "whole" if whole_words else "topk"}
    concepts = pd.DataFrame(
        {"concept": ["questions"], "rank": [1], "feature": [2], "auroc": [0.9], "selectivity": [0.2]}
    )
    return TextFeatures(table, contexts, summary, concepts, inversion_tables())


def classifiers() -> pd.DataFrame:
    return pd.DataFrame({"architecture": ["SimpleNN", "ConvNet"], "test_accuracy": [0.9, 1.0]})


def saes() -> pd.DataFrame:
    rows = {"l0": [8.0, 10.0, 9.0], "explained_variance": [0.9, 0.8, 0.7], "dead_share": [0, 0.1, 0.2]}
    return pd.DataFrame({"variant": ["topk", "topk", "relu"], **rows, "accuracy_change_pp": [-0.1, -0.3, -1]})


def injection_tables() -> dict[str, pd.DataFrame]:
    """Summary, pairs, curve, confusion and examples of two methods on two architectures."""
    names = {"method": ["references", "fragment_distillation"], "family": ["reference", "new"]}
    variant = pd.DataFrame(
        names
        | {
            "variant": ["target_alone", "a long name, as some have"],
            "tier": ["T0", "T2"],
            "site": ["logits", "last.pre"],
        }
    )
    shares = {
        "transfer": [0.0, 0.8],
        "transfer_std": [0.0, 0.05],
        "transfer_low": [0.0, 0.7],
        "transfer_high": [0.0, 0.85],
    }
    shares |= {"worst_transfer": [0.0, 0.6], "specificity": [0.0, 0.07], "specificity_std": [0.0, 0.01]}
    shares |= {"preservation": [1.0, 0.98], "preservation_std": [0.0, 0.002], "excess": [np.nan, 0.2]}
    summary = variant.assign(**shares, n_pairs=[4, 3], added_multiply_adds=[0, 160], reading=["", "distillation"])
    summary = summary.assign(older_transfer=[np.nan, 0.9], verdict=["", "not reproduced"])
    pairs = [
        row | {"source": source, "target": target, "transfer": row["transfer"]}
        for row in summary.to_dict("records")
        for source in ("SimpleNN", "ConvNet")
        for target in ("SimpleNN", "ConvNet")
        if (row["family"], source, target) != ("new", "SimpleNN", "ConvNet")
    ]
    curve = [
        row
        | {"gamma": gamma, "transfer": row["transfer"] - gamma / 10, "specificity": row["specificity"] - gamma / 100}
        for row in summary.to_dict("records")
        for gamma in (0.0, 0.5)
    ]
    new = {name: variant[name][1] for name in variant}
    confusion = [
        new | {"label": label, "before": min(label, 3), "after": after, "n": n}
        for label, after, n in ((0, 0, 12), (4, 3, 3), (4, 4, 9), (5, 3, 11), (5, 4, 1))
    ]
    examples = [
        new | {"kind": kind, "image": image, "label": image % CLASSES, "share": share}
        for kind, image, share in (("won", 4, 1.0), ("won", 14, 0.75), ("missed", 24, 0.0), ("taken", 35, 0.25))
    ]
    tables = {"pairs": pairs, "curve": curve, "confusion": confusion, "examples": examples}
    return {"summary": summary} | {name: pd.DataFrame(rows) for name, rows in tables.items()}


def jobs() -> list[Job]:
    """A chain a, c, d of 7 s beside a chain b, d of 6 s; d reads from both."""
    return [
        Job("make", "a", 1.0, 1.0, 100, (), 0.0),
        Job("make", "b", 3.0, 2.5, 120, (), 0.0),
        Job("train", "c", 3.0, 2.0, 300, (0,), 4.0),
        Job("draw", "d", 3.0, 1.0, 90, (1, 2), 2.0),
    ]


def run_data() -> dict:
    machine = {"processor": "made up", "processors": 2, "memory_mb": 8192, "gpus": [], "container": False}
    content = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00+00:00", "machines": [machine]}
    content |= {"jobs": [vars(job) for job in jobs()], "rules": by_rule(jobs()), "edges": edges(jobs())}
    return content | {"path": longest_path(jobs()), "tenfold": tenfold(jobs())}


def geometry_tables() -> dict[str, pd.DataFrame]:
    """Tables of one model's geometry: two statistics beside a control, a tetrahedron, two arms, dose and response."""
    judged = {"statistic": ["parent AUC", "nested angle"] * 2, "case": ["model"] * 2 + ["shuffled rows"] * 2}
    verdicts = pd.DataFrame(
        judged
        | {"value": [0.95, 90.0, 0.5, 90.0], "target": [">= 0.9", ""] * 2}
        | {
            "verdict": ["pass", "uninformative", "fail", "uninformative"],
            "low": [0.9, 89, 0.4, 89],
            "high": [1, 91, 0.6, 91],
        }
    )
    corners = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    points = pd.DataFrame(corners, columns=["x", "y", "z"], dtype=float)
    points = points.assign(parent="animal", child="animal/bird", text="bird", kind="vertex", view="polytope")
    points = pd.concat([points, points.assign(kind="word", view="plane"), points.assign(kind="word", text="owl")])
    arms = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "step": step, "purity": purity + seed / 10, "ev": 0.9, "absorption": None}
            for arm, purity in (("baseline_scheduled", 0.5), ("teacher", 0.7))
            for seed in (0, 1)
            for step in (10, 30)
        ]
    )
    compared = {"comparison": ["teacher against baseline_scheduled"], "quantity": ["purity, difference"]}
    compared |= {
        "target": [">= +0.1"],
        "value": [0.2],
        "low": [0.1],
        "high": [0.3],
        "n_seeds": [2],
        "verdict": ["pass"],
    }
    doses = pd.DataFrame({"dose": [1.0, 2.0] * 2, "kind": ["parent"] * 2 + ["random"] * 2})
    doses = doses.assign(site="final layer", concept="animal", target=[1.0, 2.0, 0.1, 0.1], other=[0.1, 0.2, 0.1, 0.1])
    return {
        "phase1_verdicts": verdicts,
        "phase1_points": points,
        "arms": arms,
        "arms_verdicts": pd.DataFrame(compared),
        "interventions": doses,
    }


def inversion_tables() -> dict[str, pd.DataFrame]:
    """Tables of one SAE's inversion: three features on the map, two of them chosen, latent 5 dead and nowhere."""
    selection = pd.DataFrame({"feature": [1, 2, 3, 5], "density": [0.1, 0.2, 0.3, 0.0]})
    selection = selection.assign(role=["representative", "extreme", None, None], cluster_activity=[0, 0, -1, -1])
    selection = selection.assign(activity_x=[0.0, 1.0, 2.0, np.nan], activity_y=[0.0, 1.0, 0.0, np.nan])
    rows = [
        {"feature": feature, "method": method, "text": f"{method} </script>", "ratio": ratio, "cross_entropy": 5.0}
        for feature in (1, 2)
        for method, ratio in (("random", 0.5), ("dataset", 1.0), ("gcg", 1.2), ("epo", 1.1))
    ]
    texts = pd.DataFrame(rows).assign(survived=True, evaluations=300, score=1.0)
    texts["tokens"], texts["profile"] = [["</script>", "$x$", "cat"]] * len(rows), [[0.5, -1.0, 1.0]] * len(rows)
    fronts = pd.DataFrame({"feature": [1, 1, 2], "text": ["a", "b", "c"], "ratio": [0.9, 1.1, 1.1]})
    scores = {name: [0.9, 0.8] for name in ("detection", "top_token_detection", "balanced_accuracy", "fuzzing")}
    return {
        "selection": selection,
        "texts": texts,
        "fronts": fronts.assign(cross_entropy=[3.0, 6.0, 6.0], gcg=False),
        "explanations": pd.DataFrame({"feature": [1, 2], "explanation": ["fires on 'a'", "fires on 'b'"]} | scores),
    }
