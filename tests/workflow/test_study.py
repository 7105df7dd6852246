"""The smoke study built for real, then changed, spoilt and interrupted."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ASCII, Project

SAE_STAGE = {"train_saes", "evaluate_saes", "analyze_features"}
REPORTED = {"write_report", "write_manifest", "write_site_run", "verify"}
PUBLISHED = {"write_site", *REPORTED}
DRAWN = {"draw_feature_cards", "write_site_features", "gather_tables", "draw_figures", "load_catalog", *PUBLISHED}
INJECTION_REPORTED = {"draw_injection_figures", "write_injection_report", "write_older_names"}
INJECTION_DRAWN = {"gather_injection", "load_catalog", *INJECTION_REPORTED, *PUBLISHED}


def edit(project: Project, name: str, changes: dict) -> str:
    """A study file beside the work folder: the smoke study with changes merged in."""

    def merge(old, new):
        return {**old, **{k: merge(old.get(k, {}), v) if isinstance(v, dict) else v for k, v in new.items()}}

    smoke = yaml.safe_load((project.root / "config/studies/smoke.yaml").read_text())
    path = project.work.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merge(smoke, changes), sort_keys=False))
    return str(path.with_suffix(""))


def test_the_study_shows_what_it_promises(built):
    results = built.results
    html = (results / "report.html").read_text()
    for source in re.findall(r'(?:src|href)="([^"#]+)"', html):
        assert (results / source).exists(), source
    for variant in ("relu", "batchtopk"):
        folder = results / "features" / "SimpleNN-full-s1" / "last.pre" / f"{variant}-s0"
        assert len(pd.read_parquet(folder / "features.parquet")) == 48
        assert len(json.loads((folder / "feature_report.json").read_text())["features"]) == 48
    cards = results / "features" / "ConvNet-full-s0" / "last.pre" / "batchtopk-s0" / "cards"
    assert len(list(cards.glob("*.png"))) == 48
    saes = pd.read_parquet(results / "tables" / "saes.parquet")
    assert len(saes) == 2 * 2 * 2
    assert saes["explained_variance"].between(0, 1).all()


def test_the_injection_study_has_a_row_for_every_method_and_pair_that_it_applies_to(built):
    folder = built.results / "injection"
    methods = yaml.safe_load((built.root / "config/studies/smoke.yaml").read_text())["injection"]["methods"]
    measures = pd.read_parquet(folder / "tables" / "measures.parquet")
    assert set(measures["method"]) == set(methods)
    pairs = measures.groupby("method")[["source", "target"]].apply(lambda rows: len(rows.drop_duplicates()))
    assert pairs["ridge_regression"] == 4
    assert pairs["direct_weight_copy"] == 2
    assert measures["preservation"].between(0, 1).all()
    report = (folder / "report.md").read_text()
    assert all((folder / picture).exists() for picture in re.findall(r"\]\((figures/[^)]+)\)", report))
    assert (folder / "EXPERIMENT_REPORT.md").read_text() == report
    rows = json.loads((folder / "method1_comprehensive_results.json").read_text())["measures"]
    assert len(rows) == (measures["method"] == "precomputed_alignment").sum()


def test_the_catalog_holds_every_sae_and_all_injection_results(built):
    with sqlite3.connect(built.results / "catalog.sqlite") as catalog:
        kinds = dict(catalog.execute("SELECT kind, count(*) FROM training_runs GROUP BY kind"))
        features = catalog.execute("SELECT count(*) FROM discovered_features").fetchone()[0]
        measures = catalog.execute("SELECT count(*) FROM injection_results").fetchone()[0]
        curve = catalog.execute("SELECT count(DISTINCT step) FROM epoch_metrics").fetchone()[0]
    assert kinds == {"vision": 8, "injection": 1}
    assert features == len(pd.read_parquet(built.results / "tables" / "features.parquet"))
    assert measures == len(pd.read_parquet(built.results / "injection" / "tables" / "measures.parquet"))
    assert curve == 300


def test_every_file_is_in_the_manifest_with_its_digest(built):
    subprocess.run(["sha256sum", "--check", "--quiet", "MANIFEST.sha256"], cwd=built.results, check=True)
    listed = {line.partition("  ")[2] for line in built.manifest().splitlines()}
    beside = {"MANIFEST.sha256", "verification.txt", "catalog.sqlite", "site/run_data.js"}
    files = {p.relative_to(built.results).as_posix() for p in built.results.rglob("*") if p.is_file()}
    unlisted = {f for f in files - listed - beside if not f.startswith(("logs/", "benchmarks/"))}
    assert {f for f in unlisted if not f.endswith(".snakemake_timestamp")} == set()


def test_a_built_study_has_nothing_left_to_do(built):
    assert built.planned() == {}


def test_a_second_build_elsewhere_has_the_same_bytes(built, tmp_path):
    other = Project(built.root, tmp_path)
    other.snakemake(environment=ASCII)
    assert other.manifest() == built.manifest()


def test_verify_tells_an_equal_study_from_another(built, fresh):
    manifest = f"reference={built.results / 'MANIFEST.sha256'}"
    fresh.snakemake("verify", "--config", manifest)
    assert (fresh.results / "verification.txt").read_text().startswith("equal")

    table = built.results / "tables" / "saes.parquet"
    altered = fresh.work.parent / "altered" / "tables"
    altered.mkdir(parents=True)
    for path in table.parent.glob("*.parquet"):
        shutil.copy2(path, altered)
    frame = pd.read_parquet(table)
    frame.loc[0, "explained_variance"] += 0.1
    frame.to_parquet(altered / "saes.parquet")
    run = fresh.snakemake("verify", "--config", f"reference={altered.parent}", check=False)
    assert run.returncode != 0
    assert "saes.parquet: column explained_variance, row 0" in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("features", {"features": {"top_examples": 9}}, {"analyze_features"} | DRAWN),
        ("saes", {"saes": {"training": {"steps": 301}}}, SAE_STAGE | DRAWN),
        # Two numbers that trade places: a set of values would hide it.
        ("swap", {"saes": {"training": {"warmup_steps": 40, "sparsity_warmup_steps": 20}}}, SAE_STAGE | DRAWN),
        ("capture", {"activations": {"chunk_rows": 256}}, {"capture_activations"} | SAE_STAGE | DRAWN),
        ("tolerance", {"verify": {"rtol": 0.5}}, {"verify"}),
        ("injection", {"injection": {"bootstrap": 21}}, {"inject"} | INJECTION_DRAWN),
        (
            "concept_saes",
            {"injection": {"concept_spaces": {"k": 5}}},
            {"train_concept_saes", "inject"} | INJECTION_DRAWN,
        ),
        # The rows of the methods that stay are as good as before.
        ("methods", {"injection": {"methods": ["references", "ridge_regression"]}}, INJECTION_DRAWN),
    ],
)
def test_a_changed_setting_reruns_exactly_what_depends_on_it(fresh, name, changes, expected):
    assert set(fresh.planned(study=edit(fresh, name, changes))) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("features/bank.py", {"analyze_features"} | DRAWN),
        ("publish/report.py", REPORTED),
        ("publish/site/features.py", {"write_site_features", *PUBLISHED} - {"write_report"}),
        ("catalog/runs.py", {"load_catalog"}),
        ("catalog/migrations/versions/first_tables.py", {"load_catalog"}),
        ("sae/trainer.py", SAE_STAGE | DRAWN | {"train_concept_saes", "inject"} | INJECTION_DRAWN),
        ("injection/methods/weight_selection.py", {"inject"} | INJECTION_DRAWN),
        (
            "publish/injection_report.md.j2",
            {"write_injection_report", *REPORTED},
        ),
    ],
)
def test_an_edit_of_the_library_reruns_exactly_what_uses_it(fresh, module, expected):
    path = fresh.root / "scripts" / "saeflow" / module
    before = path.read_text()
    try:
        path.write_text(before + "\n# edited\n")
        assert set(fresh.planned()) == expected
    finally:
        path.write_text(before)


def test_an_edit_of_one_method_reruns_no_other(fresh):
    path = fresh.root / "scripts" / "saeflow" / "injection" / "methods" / "weight_selection.py"
    before = path.read_text()
    try:
        path.write_text(before + "\n# edited\n")
        assert fresh.planned()["inject"] == 1
    finally:
        path.write_text(before)


def test_a_changed_store_reruns_its_readers_and_not_its_writer(fresh):
    manifest = fresh.results / "activations" / "SimpleNN-full-s0" / "last.pre" / "train" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"metadata": content.get("metadata", {}) | {"changed": True}}))
    jobs = fresh.planned()
    assert set(jobs) == SAE_STAGE | DRAWN
    assert jobs["train_saes"] == 1


def test_a_truncated_chunk_is_named_by_the_job_that_reads_it(fresh):
    part = fresh.results / "activations" / "SimpleNN-full-s0" / "last.pre" / "train" / "part-0"
    chunk = max((p for p in part.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-8])
    run = fresh.snakemake("saes", "--forcerun", "train_saes", check=False)
    assert run.returncode != 0
    assert chunk.relative_to(part).as_posix() in run.stdout + run.stderr


def start(project: Project, *arguments: str, study: str = "smoke") -> subprocess.Popen:
    return subprocess.Popen(
        project.command(*arguments, study=study),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A test run in the background may have been told to ignore it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "Snakemake ended before the job started"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def script_of(rule: str, project: Project) -> list[int]:
    """Process ids of the rule's script that run in this project's work folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            here = process.name.isdigit() and (process / "cwd").resolve() == project.work.resolve()
            if here and f"{rule}.py" in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def test_a_killed_job_leaves_nothing_half_built_and_the_study_continues(built, fresh):
    shutil.rmtree(fresh.results / "saes")
    slow = edit(fresh, "slow", {"saes": {"training": {"steps": 200000}}})
    process = start(fresh, "saes", study=slow)
    log = fresh.results / "logs" / "train_saes" / "SimpleNN-full" / "last.pre.log"
    log.unlink()
    wait_for(log, process)
    time.sleep(2)
    victims = script_of("train_saes", fresh)
    assert victims
    for victim in victims:
        subprocess.run(["kill", "-9", str(victim)], check=True)
    assert process.wait(timeout=120) != 0
    assert [p for p in (fresh.results / "saes").rglob("*") if p.is_file()] == []
    assert log.exists()
    fresh.snakemake("--rerun-incomplete")
    assert fresh.manifest() == built.manifest()


def test_an_sae_that_fails_costs_its_job_no_other(built, fresh):
    """What is done is kept where Snakemake, which deletes the outputs of a failed job, does not look."""
    target = "results/smoke/saes/SimpleNN-full-s0/last.pre/relu-s0/cfg.json"
    shutil.rmtree(fresh.results / "saes")
    full = {"full": {"architecture": "gated", "d_sae": 24, "target_l0": 24}}
    run = fresh.snakemake(target, study=edit(fresh, "full", {"saes": {"variants": full}}), check=False)
    said = run.stdout + run.stderr
    assert run.returncode != 0
    assert "full-s0, store 0: target_l0 24 is outside the L0 reached" in said
    assert "full-s0, store 1, " in said  # of the other network
    assert "4 other SAEs are done and kept (results/smoke/saes/SimpleNN-full-s" in said
    kept = {path.relative_to(fresh.results / "saes").as_posix() for path in fresh.results.glob("saes/*/*/*")}
    wanted = {
        f"SimpleNN-full-s{seed}/last.pre/{name}.finished" for seed in (0, 1) for name in ("relu-s0", "batchtopk-s0")
    }
    assert kept == wanted

    fresh.snakemake(target)
    log = (fresh.results / "logs/train_saes/SimpleNN-full/last.pre.log").read_text()
    assert log.count(": taken from results/smoke/saes/") == 4
    assert " SAEs in " not in log  # nothing was trained
    assert list(fresh.results.glob("saes/*/*/*.finished")) == []
    for name in ("cfg.json", "sae_weights.safetensors"):
        for made in fresh.results.glob(f"saes/SimpleNN-*/*/*/{name}"):
            assert made.read_bytes() == (built.results / made.relative_to(fresh.results)).read_bytes()


def test_an_interrupted_study_continues_to_the_same_bytes(built, tmp_path):
    project = Project(built.root, tmp_path)
    process = start(project)
    wait_for(project.results / "logs" / "train_saes", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) != 0
    project.snakemake("--rerun-incomplete")
    assert project.manifest() == built.manifest()
