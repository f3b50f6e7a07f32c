"""Sweeps: several SAE settings and seeds in one run, each SAE with the bytes that it has when it is trained alone."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file

from groupsae.analysis.run_records import RunRecords
from groupsae.analysis.sweep import over_seeds
from groupsae.cli.flags import changed, read_flags
from groupsae.config import (
    GatedConfig,
    RunConfig,
    TopKConfig,
    commented_toml,
    differing_keys,
    dump_config,
    flat,
    load_config,
    setting_names,
)
from groupsae.errors import ConfigError
from groupsae.evaluation.dictionaries import match_rows
from groupsae.planning.memory import Available
from groupsae.recipes import passes
from groupsae.records import RunDirectory
from groupsae.records.stages import fingerprint
from groupsae.saes.suite import Suite, read_suite_index

SWEEP = RunConfig(seeds=(0, 5), sae=(TopKConfig(k=8), TopKConfig(k=16, auxk_weight=0.5)))
VARIANTS = ("k3-seed3", "k3-seed7", "k4-seed3", "k4-seed7")


def settings(text: str, *, seeds: str = "", saes: str = "") -> str:
    """A config's text with other seeds and `[sae]` tables."""
    return seeds + re.sub(r"\[sae\].*?(?=\[train\])", saes, text, flags=re.DOTALL)


def table(k: int, head: str = "[[sae]]") -> str:
    return f"{head}\nexpansion = 2\nk = {k}\ndead_after_tokens = 200\n"


@pytest.fixture
def sweep(here):
    """tiny.toml with two settings and two seeds."""
    text = (here / "tiny.toml").read_text()
    (here / "many.toml").write_text(settings(text, seeds="seeds = [3, 7]\n", saes=table(3) + table(4)))
    return here / "many.toml"


@pytest.fixture
def alone(here):
    """Writes a config of one setting with one seed, by its variant's name."""
    text = (here / "tiny.toml").read_text()

    def write(variant):
        k, seed = re.fullmatch(r"k(\d+)-seed(\d+)", variant).groups()
        (here / "alone.toml").write_text(settings(text, seeds=f"seeds = [{seed}]\n", saes=table(int(k), "[sae]")))
        return here / "alone.toml"

    return write


# ---- configs


@pytest.mark.parametrize("write", [dump_config, commented_toml])
def test_a_sweep_survives_being_written(write):
    assert RunConfig(**tomllib.loads(write(SWEEP))) == SWEEP


def test_one_setting_is_written_as_before():
    assert not {"seeds", "other_saes"} & {*flat(RunConfig()), *tomllib.loads(dump_config(RunConfig()))}
    assert len(RunConfig(sae=(TopKConfig(k=8),)).variants) == 1
    assert RunConfig(sae=(TopKConfig(k=8),)) == RunConfig(sae=TopKConfig(k=8))


def test_variants_are_named_by_all_that_differs():
    assert [one.name for one in SWEEP.variants] == [
        "k8-auxk_weight0.03125-seed0",
        "k8-auxk_weight0.03125-seed5",
        "k16-auxk_weight0.5-seed0",
        "k16-auxk_weight0.5-seed5",
    ]
    assert [one.suite("groups") for one in RunConfig().variants] == ["groups"]
    assert setting_names((TopKConfig(), GatedConfig())) == ("topk", "gated")
    assert setting_names((TopKConfig(d_sae=512), TopKConfig())) == ("d_sae512", "d_sae-auto")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sae": []}, r"empty list.*\[\[sae\]\]"),
        ({"seeds": []}, "empty list; give at least one seed"),
        ({"seeds": [1, 2, 1]}, "1 more than once"),
        ({"seeds": [-1]}, "seeds"),
        ({"sae": [{"k": 8}, {"k": 9}, {"k": 8}]}, "settings 1 and 3 are equal"),
        ({"sae": [{"k": 8}, {"k": 8, "architecture": "topk"}]}, "settings 1 and 2 are equal"),
        ({"sae": [{"k": 8}, {"architecture": "relu", "auxk_weight": 0.1}]}, "table 2.*'auxk_weight'.*'relu'.*topk"),
        ({"sae": [{"prefixes": [0.5, 1.0]}]}, "table 1.*key of matryoshka"),
        ({"sae": [{"auxk_weight": 0.3333333}, {"auxk_weight": 0.3333334}]}, "both be named"),
        ({"sae": [{"k": 8}, 5]}, "entry 2"),
        ({"sae": [{"k": 8}, {"kk": 5}]}, "table 2.*Did you mean 'k'"),
        ({"sae": [{"architecture": "matryoshka", "prefixes": [i / 30 for i in range(1, 31)], "k": k} for k in (8, 9)],
          "seeds": [2**31]}, "less than"),
        ({"seeds": [0, 1], "train": {"warm_start": {"source": "runs/x"}}}, "initial weights"),
        ({"sae": [{"k": 8}, {"architecture": "jumprelu"}], "train": {"rescale_encoder_init": True}}, "jumprelu"),
    ],
)  # fmt: skip
def test_what_a_sweep_cannot_be(values, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig(**values)


def test_names_that_are_too_long_for_a_folder_are_refused():
    halves = [tuple(part / 40 for part in range(last, 41)) for last in (1, 2)]
    with pytest.raises(ConfigError, match="longer than the 80 characters"):
        RunConfig(sae=[{"architecture": "matryoshka", "prefixes": list(prefixes)} for prefixes in halves])


def test_what_differs_between_sweeps_is_named():
    other = RunConfig(seeds=(0, 5), sae=(TopKConfig(k=8), TopKConfig(k=32)))
    assert [line.partition(":")[0] for line in differing_keys(SWEEP, other)] == ["other_saes"]


def test_seeds_and_settings_count_from_the_stages_on_that_read_them():
    assert fingerprint(SWEEP, "group") == fingerprint(RunConfig(), "group")
    plain = fingerprint(RunConfig(sae=TopKConfig(k=8)), "train")
    found = {plain, fingerprint(SWEEP, "train"), fingerprint(RunConfig(sae=TopKConfig(k=8), seeds=(1,)), "train")}
    assert len(found) == 3


def flags(*given, config=None):
    config = config or RunConfig()
    return changed(config, read_flags("run", list(given), config))


def test_a_flag_with_several_values_is_a_sweep():
    config = flags("--sae.k", "16", "32", "64", "--seeds", "0", "1")
    assert [one.sae.k for one in config.variants] == [16, 16, 32, 32, 64, 64]
    assert [one.setting for one in flags("--sae.k=8", "--sae.architecture", "topk", "relu").variants] == [
        "topk",
        "relu",
    ]
    assert len(flags("--sae.k", "8", "9", "--sae.d-sae", "64", "128").saes) == 4


def test_a_key_that_is_a_list_keeps_its_values_together():
    config = flags("--sae.architecture", "matryoshka", "--sae.prefixes", "0.5", "1")
    assert [sae.prefixes for sae in config.saes] == [(0.5, 1.0)]


def test_flags_count_for_every_table():
    assert flags(config=SWEEP) == SWEEP
    assert [sae.d_sae for sae in flags("--sae.d_sae", "640", config=SWEEP).saes] == [640, 640]
    assert len(flags("--sae.k", "8", config=RunConfig(sae=(TopKConfig(k=8), TopKConfig(k=16)))).saes) == 1
    with pytest.raises(ConfigError, match="equal"):
        flags("--sae.k", "16", "16")


# ---- training


def weights(run: Path, suffix: str = "") -> dict:
    """Bytes of the SAEs whose folders end in `suffix`, by the names they would have alone."""
    folders = [folder for folder in (run / "groups").iterdir() if folder.name.endswith(suffix)]
    return {
        (folder.name.removesuffix(suffix), name): (folder / name).read_bytes()
        for folder in folders
        for name in ("sae.safetensors", "cfg.json")
    }


def test_each_sae_of_a_sweep_has_the_bytes_that_it_has_alone(sweep, alone, call):
    assert call("train", sweep.name)[0] != 0  # nothing before it was done
    for verb in ("tokens", "distances", "group", "train"):
        assert call(verb, sweep.name)[0] == 0
    for variant in VARIANTS[1:3]:
        path = alone(variant)
        assert call("run", path.name, "--overwrite")[0] == 0
        found = weights(Path("runs/alone"))
        assert found and found == weights(Path("runs/many"), f"@{variant}")
    assert weights(Path("runs/many"), "@k3-seed3") != weights(Path("runs/many"), "@k3-seed7")


def test_a_sweep_reads_the_text_once(sweep, call, monkeypatch):
    from groupsae.activations.harvest import Harvester

    for verb in ("tokens", "distances", "group"):
        assert call(verb, sweep.name)[0] == 0
    read, rows = Harvester.read, []
    monkeypatch.setattr(Harvester, "read", lambda self, wanted: rows.extend(wanted) or read(self, wanted))
    assert call("train", sweep.name)[0] == 0
    assert len(rows) == 48  # as many as for one setting (test_passes.py)


def test_a_sweep_has_a_report_before_it_is_trained(sweep, call):
    for verb in ("tokens", "distances", "group", "plan", "report"):
        code, out, _ = call(verb, sweep.name)
        assert code == 0
        if verb == "plan":
            assert "this run (8 suites" in out
    page = Path("runs/many/report/index.html").read_text()
    assert "A sweep of 4 variants. They are not trained yet." in page and 'id="figure-pareto"' not in page


@pytest.fixture
def narrow(monkeypatch):
    """Memory that holds so many variants at once, the largest ones."""

    def hold(number):
        original = passes.fewest_passes

        def fewest(pricings, groups, available):
            from groupsae.planning.memory import predict_memory
            from groupsae.planning.sweep import memory_together

            memories = [predict_memory(one.footprint_of(groups)) for one in pricings]
            return original(pricings, groups, Available(host=memory_together(memories[-number:]).host))

        monkeypatch.setattr(passes, "fewest_passes", fewest)

    return hold


def test_what_memory_does_not_hold_takes_several_passes_and_gives_the_same(sweep, call, narrow):
    for verb in ("tokens", "distances", "group", "train"):
        assert call(verb, sweep.name)[0] == 0
    before, log = weights(Path("runs/many")), Path("runs/many/metrics.jsonl").read_text()
    whole = RunRecords.read(RunDirectory.open(Path("runs/many")))
    narrow(3)
    code, _, said = call("train", sweep.name, "--overwrite")
    assert code == 0
    assert "memory does not hold all 4 variants of the sweep at once: 2 passes" in said
    assert weights(Path("runs/many")) == before
    split = RunRecords.read(RunDirectory.open(Path("runs/many")))
    assert [len(one.saes) for one in split.train.passes] == [3 * len(before) // 8, len(before) // 8]
    assert split.log == whole.log and len(log.splitlines()) * 2 == len(split_lines())
    name = split.train.passes[1].saes[0].partition("@")[2]
    suite = next(one for key, one in split.partitions.items() if key == f"groups-{name}")
    assert split.train.seconds_of(suite) < sum(split.train.seconds.values())
    assert not list(Path("runs/many/checkpoints").glob("*.json"))  # those of the single pass are gone


def split_lines() -> list[str]:
    return Path("runs/many/metrics.jsonl").read_text().splitlines()


def test_a_sweep_of_several_passes_goes_on_where_it_was_stopped(sweep, call, narrow, monkeypatch):
    from groupsae.recipes import train

    for verb in ("tokens", "distances", "group", "train"):
        assert call(verb, sweep.name)[0] == 0
    before = weights(Path("runs/many"))
    narrow(2)
    together, begun = train.train_together, []

    def stopping(source, jobs, *rest, **options):
        if begun:
            raise KeyboardInterrupt
        begun.append(sorted(jobs))
        return together(source, jobs, *rest, **options)

    monkeypatch.setattr(train, "train_together", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.train(train_context(sweep))
    lines = len(split_lines())
    counted = []
    monkeypatch.setattr(
        train,
        "train_together",
        lambda source, jobs, *r, **o: counted.append(sorted(jobs)) or together(source, jobs, *r, **o),
    )
    train.train(train_context(sweep))
    assert len(counted) == 1 and not set(counted[0]) & set(begun[0])  # only the second pass is trained
    assert len(split_lines()) == 2 * lines
    assert weights(Path("runs/many")) == before


def train_context(config: Path):
    from groupsae.recipes.context import RunContext

    run = RunDirectory(Path("runs/many"), load_config(config))
    return RunContext(run, overwrite=not run.file("passes").exists())


def test_two_ways_to_give_one_width_are_refused_before_anything_is_read(here, call):
    text = (here / "tiny.toml").read_text()
    saes = "[[sae]]\nexpansion = 2\nk = 4\n[[sae]]\nd_sae = 32\nk = 4\n"
    (here / "twice.toml").write_text(settings(text, saes=saes))
    code, _, said = call("run", "twice.toml")
    assert code == 2 and "give the same SAEs" in said
    assert not Path("runs/twice").exists()


# ---- results


@pytest.fixture
def swept(sweep, call):
    assert call("run", sweep.name)[0] == 0
    return Path("runs/many")


def test_a_finished_sweep(swept, call):
    names = [f"{kind}-{variant}" for variant in VARIANTS for kind in ("baseline", "groups")]
    index = read_suite_index(swept)
    assert list(index) == names
    summary = json.loads((swept / "eval/summary.json").read_text())
    by_suite = summary["suites"]
    assert list(by_suite) == names
    _check_costs(summary)
    _check_settings(swept, summary)
    _check_pairs(swept)
    _check_report(swept)
    code, out, _ = call("show", swept, "--json")
    assert code == 0 and [row["setting"] for row in json.loads(out)["sweep"]] == ["k3", "k3", "k4", "k4"]


def _check_costs(summary):
    """A suite's cost is that of its own setting."""
    suites = summary["suites"]
    assert suites["groups-k3-seed3"]["own_mflop"] == suites["groups-k3-seed7"]["own_mflop"]
    assert suites["groups-k3-seed3"]["own_mflop"] < suites["groups-k4-seed3"]["own_mflop"]


def _check_settings(run, summary):
    """Rows of settings are means over the suites of both seeds; stability is what the decoders themselves say."""
    rows = {(row["kind"], row["setting"]): row for row in summary["sweep"]}
    assert set(rows) == {(kind, setting) for kind in ("baseline", "groups") for setting in ("k3", "k4")}
    for (kind, setting), row in rows.items():
        assert row["suites"] == [f"{kind}-{setting}-seed{seed}" for seed in (3, 7)]
        values = [summary["suites"][name]["mean_fvu"] for name in row["suites"]]
        assert row["mean_fvu"] == pytest.approx({"mean": sum(values) / 2, "low": min(values), "high": max(values)})
        one, other = (Suite.load(run, name) for name in row["suites"])
        shares = [match_rows(one.saes[name].W_dec, other.saes[name].W_dec, 0.7).share for name in one.saes]
        assert row["seed_stability"] == pytest.approx(sum(shares) / len(shares))


def _check_pairs(run):
    """Dictionaries are compared within a variant, and for stability between seeds; losses share one clean pass."""
    found = json.loads((run / "eval/similarity.json").read_text())
    variants = [one["suite"].partition("-")[2] for one in found["dictionaries"]]
    for row, one in zip(found["mmcs"], variants, strict=True):
        assert [value is not None for value in row] == [one == other for other in variants]
    for row in found["stability"]:
        one, other = row["one"].split("-"), row["other"].split("-")
        assert one[:2] == other[:2] and one[2] != other[2]
    record = json.loads((run / "eval/losses.json").read_text())
    for suite, reference in record["references"].items():
        assert reference == "baseline-" + suite.partition("-")[2]
    assert not any(suite.startswith("baseline") for suite in record["differences"])


def _check_report(run):
    page = (run / "report/index.html").read_text()
    assert all(f'id="figure-{key}"' in page for key in ("pareto", "pareto-fvu", "pareto-delta_ce"))
    assert 'id="setting-table"' in page and 'id="seed-table"' in page
    assert page.index('id="sweep"') < page.index('id="summary"')
    assert "side by side: k3-seed3" in page
    assert "2 SAE settings, 2 seeds" in page


def test_one_variant_reads_like_a_run_of_its_own(swept, alone, call):
    from groupsae.analysis.one_variant import of_variant
    from groupsae.analysis.summary import summarize

    assert call("run", alone("k3-seed3").name)[0] == 0
    own, part = (RunRecords.read(RunDirectory.open(path)) for path in (Path("runs/alone"), swept))
    part = of_variant(part, "k3-seed3")
    assert part.partitions == own.partitions and part.log == own.log
    assert list(part.train.saes) == list(own.train.saes)
    numbers = ("mean_fvu", "mean_delta_ce", "all_layers_delta_ce", "mean_l0", "mean_concordance", "circuit_ceiling")
    for one, other in zip(summarize(part), summarize(own), strict=True):
        assert {name: getattr(one, name) for name in numbers} == {name: getattr(other, name) for name in numbers}


def test_a_suite_of_a_sweep_is_loaded_by_its_name(swept):
    suite = Suite.load(swept, "groups-k4-seed7")
    for group, sae in suite.saes.items():
        assert (load_file(swept / f"groups/{group}@k4-seed7/sae.safetensors")["W_dec"] == sae.W_dec).all()
        assert sae.config.k == 4
    assert Suite.load(swept).partition == Suite.load(swept, "groups-k3-seed3").partition


def test_numbers_over_seeds():
    assert over_seeds([]) is None and over_seeds([1.0, None]) is None
    found = over_seeds([3.0, 1.0])
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 3.0)
