"""The browser of latents: its files, and in a real browser, where one is installed, that it opens and works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from groupsae.browser import write
from groupsae.config import RunConfig
from groupsae.interpretability.explanations import FILE
from groupsae.interpretability.selection import NOT_SAMPLED
from groupsae.interpretability.store import SCORES, TEXT_FILE, write_arrays, write_shard
from groupsae.records import RunDirectory
from groupsae.records.types.contexts import ContextsRecord, DictionaryRecord, ShardRecord, VocabularyRecord

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0",
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!--"
WINDOW, ROW_TOKENS, ROWS = 8, 16, 6


# ---- a run whose contexts are made up


def layer_arrays(latents, layers, layer, vocabulary, seed=0):
    """The arrays of so many latents at one layer; the first latent never fires, the second not at layer 0."""
    random = np.random.default_rng([seed, layer])
    silent = np.arange(latents) < (2 if layer == 0 else 1)
    token_id = random.integers(0, vocabulary, (latents, 8)).astype(np.int32)
    token_id[silent] = -1
    fires = np.flatnonzero(~silent)
    return {
        "count": np.where(silent, 0, random.integers(1, 500, latents)).astype(np.int64),
        "peak": np.where(silent, 0, random.random(latents)).astype(np.float32),
        "mean": np.where(silent, 0, 0.1).astype(np.float32),
        "histogram": random.integers(0, 50, (latents, 16)).astype(np.int32),
        "token_id": token_id,
        "token_share": np.full((latents, 8), 0.1, dtype=np.float32),
        **{name: np.where(silent, np.nan, random.random(latents)).astype(np.float32) for name in SCORES},
        "promoted_id": random.integers(0, vocabulary, (latents, 10)).astype(np.int32),
        "promoted_logit": np.ones((latents, 10), dtype=np.float32),
        "suppressed_id": random.integers(0, vocabulary, (latents, 10)).astype(np.int32),
        "suppressed_logit": -np.ones((latents, 10), dtype=np.float32),
        "near_id": random.integers(0, latents, (latents, 8)).astype(np.int32),
        "near_cosine": random.random((latents, 8)).astype(np.float32),
        "together_id": np.full((latents, 8), -1, dtype=np.int32),
        "together_jaccard": np.zeros((latents, 8), dtype=np.float32),
        "other_id": np.zeros((latents, 0, 4), dtype=np.int32),
        "other_cosine": np.zeros((latents, 0, 4), dtype=np.float32),
        "overlap": np.where(silent[:, None], np.nan, 0.5 * np.ones((latents, layers))).astype(np.float32),
        "window_latent": fires.astype(np.int32),
        "window_row": random.integers(0, ROWS, len(fires)).astype(np.int32),
        "window_first": random.integers(0, ROW_TOKENS - WINDOW, len(fires)).astype(np.int32),
        "window_rank": np.zeros(len(fires), dtype=np.uint8),
        "window_quantile": np.full(len(fires), NOT_SAMPLED, dtype=np.uint8),
        "window_start": np.arange(len(fires) + 1, dtype=np.int64),
        "window_offset": np.full(len(fires), 5, dtype=np.int16),
        "window_value": np.full(len(fires), 0.25, dtype=np.float32),
        "silent_latent": np.zeros(0, dtype=np.int32),
        "silent_row": np.zeros(0, dtype=np.int32),
        "silent_first": np.zeros(0, dtype=np.int32),
    }


def made_up_run(path, latents=70, layers=3, vocabulary=50):
    """A run with one group whose contexts are done; tokens are `t0`, `t1`, ..., the last one is hostile."""
    run = RunDirectory(path, RunConfig(name="made-up"))
    run.adopt()
    names = tuple(f"layers.{layer}" for layer in range(layers))
    shard = ShardRecord(file="contexts/latents/0/000000.safetensors", first=0, count=latents)
    write_shard(run.file(shard.file), [layer_arrays(latents, layers, layer, vocabulary) for layer in range(layers)], "")
    ids_RT = np.random.default_rng(1).integers(0, vocabulary, (ROWS, ROW_TOKENS)).astype(np.int32)
    ids_RT[:, 3] = vocabulary - 1
    text = {"ids": ids_RT, "kept": np.ones(ids_RT.shape, dtype=np.uint8), "row": np.arange(ROWS)}
    write_arrays(run.file(TEXT_FILE), text)
    VocabularyRecord(tokens=(*(f" t{index}" for index in range(vocabulary - 1)), HOSTILE)).write(run)
    dictionary = DictionaryRecord(
        suite="groups", suites=("groups",), group="layers.0-2", layers=names, d_sae=latents, silent=1,
        others=((),) * layers, shards=(shard,),
    )  # fmt: skip
    ContextsRecord(
        text="held-out", num_tokens=5000, num_rows=ROWS, row_tokens=ROW_TOKENS, window=WINDOW, top=1, quantiles=1,
        per_quantile=1, final_norm=None, promotes=True, histogram_bins=16, dictionaries=(dictionary,),
    ).write(run)  # fmt: skip
    for stage in ("tokens", "distances", "group", "train"):
        run.finish(stage, 1.0, [])
    run.finish("contexts", 1.0, [ContextsRecord.path])
    return run


def explain(run, latent, text):
    """Write a judge's record with one explanation."""
    scores = {"own": {"detection": {"balanced_accuracy": 0.75}}}
    judged = {"latent": latent, "explanation": text, "scores": scores}
    run.write_json(FILE, {"suites": {"groups": {"layers.1": [judged, {**judged, "latent": 9, "explanation": None}]}}})


# ---- files


def value(run, name):
    """What a file of data hands over."""
    text = run.file(f"browser/data/{name}.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r'groupsae\.receive\("[\w/]+",(.*)\);\n', text, re.DOTALL)[1])


def test_every_latent_has_a_page(tmp_path):
    run = made_up_run(tmp_path / "run")
    files = write.write_browser(run)
    assert all(run.file(name).is_file() for name in files)
    pages = [page for part in range(3) for page in value(run, f"0/{part}")]
    assert len(pages) == 70 and not run.file("browser/data/0/3.js").exists()
    assert [len(page["layers"]) for page in pages] == [3] * 70
    assert pages[0]["layers"][0]["count"] == 0 and pages[0]["layers"][0]["windows"] == []
    assert pages[5]["layers"][1]["windows"][0][4:] == [5, 0.25]
    assert value(run, "tokens")[-1] == HOSTILE


def test_a_browser_written_before_is_replaced_whole(tmp_path):
    run = made_up_run(tmp_path / "run")
    write.write_browser(run)
    run.write_text("browser/data/0/99.js", "left over")
    write.write_browser(run)
    assert not run.file("browser/data/0/99.js").exists()


def test_explanations_are_shown_where_a_judge_gave_them(tmp_path):
    run = made_up_run(tmp_path / "run")
    explain(run, 7, "fires on sevens")
    write.write_browser(run)
    assert value(run, "0")["explained"] == {"7": "fires on sevens"}
    explained = value(run, "0/0")[7]["layers"]
    assert explained[1]["explanation"] == {"text": "fires on sevens", "detection": 0.75}
    assert "explanation" not in explained[0] and "explanation" not in value(run, "0/0")[9]["layers"][1]


def test_the_stage_writes_it_and_the_report_links_it(done, call):
    assert (done / write.PAGE).is_file()
    report = (done / "report/index.html").read_text()
    assert 'href="../browser/index.html"' in report
    assert 'id="interpretability-table"' in report and 'id="figure-latents"' in report
    shutil.rmtree(done / "browser")
    assert call("show", done)[0] == 0
    code, _, err = call("browse", done)
    assert code == 0 and "browser/index.html" in err and (done / write.PAGE).is_file()


def test_assets_ask_for_nothing_from_elsewhere():
    for name in write.ASSETS:
        text = (write._HERE / name).read_text(encoding="utf-8")
        assert not re.findall(r"""["'(](?:https?:)?//(?!www\.w3\.org/2000/svg)""", text)
        assert "innerHTML" not in text and "eval(" not in text and "fetch(" not in text


# ---- in a browser


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Opens a page, with a script that acts on it; what it noted (data-...), the document, and the complaints."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")

    def open_page(run, hash_="", probe=""):
        page, profile = run.file(write.PAGE), tmp_path_factory.mktemp("profile")
        waits = f"""new MutationObserver((_, seer) => {{
          const note = document.documentElement.dataset, $ = (id) => document.getElementById(id);
          if (!note.readyMs) return;
          seer.disconnect();
          {probe}
        }}).observe(document.documentElement, {{ attributes: true }});"""
        run.write_text("browser/probe.js", waits)
        html = (write._HERE / "index.html").read_text(encoding="utf-8")
        run.write_text(write.PAGE, html.replace("</body>", '<script src="probe.js"></script></body>'))
        command = [browser, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri() + hash_]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stderr
        note = dict(re.findall(r'data-([\w-]+)="([^"]*)"', found.stdout.partition("<head>")[0]))
        return note, found.stdout, [line for line in found.stderr.splitlines() if "CONSOLE" in line]

    return open_page


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A made-up run with a browser and one hostile explanation."""
    run = made_up_run(tmp_path_factory.mktemp("small") / "run")
    explain(run, 7, f"fires on {HOSTILE}")
    write.write_browser(run)
    return run


LATENT = "#sae=groups/layers.0-2&latent="


def test_a_latent_has_what_is_known_of_it(small, opened):
    note, document, complaints = opened(small, f"{LATENT}5&layer=layers.1")
    assert complaints == [] and note["shown"] == "0/5"
    assert "<h1>Latent 5</h1>" in document
    assert 'data-value="0.25"' in document and 'class="histogram"' in document
    for title in ("Where in its group it fires", "Contexts at layers.1", "Promotes", "Nearest by direction"):
        assert title in document


def test_hostile_tokens_and_explanations_do_nothing(small, opened):
    _, document, complaints = opened(small, f"{LATENT}7&layer=layers.1")
    assert complaints == [] and "<img" not in document and "<title>7" in document
    assert "fires on &lt;/script&gt;&lt;img src=x" in document


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (f"{LATENT}0", "This latent never fires: on none of the 5,000 tokens that were read, at no layer of its group"),
        (f"{LATENT}1&layer=layers.0", "It does not fire at layers.0, on none of the 5,000 tokens"),
        (f"{LATENT}99999", "There is no latent 99999 in groups · layers.0-2: it has 0 to 69."),
        (f"{LATENT}x%3Cb%3E", "There is no latent x&lt;b&gt; in groups"),
        ("#sae=nothing/here&latent=3", "There is no SAE nothing/here in this run"),
        ("", "70 latents at 3 layers. 1 of them fire on none of the 5,000 tokens"),
    ],
)
def test_what_is_not_there_is_said(small, opened, place, said):
    _, document, complaints = opened(small, place)
    assert complaints == [] and said in document


def test_a_missing_file_of_data_is_said(small, opened, tmp_path):
    shutil.copytree(small.path, tmp_path / "copy")
    run = RunDirectory(tmp_path / "copy", small.config)
    run.file("browser/data/0/0.js").unlink()
    _, document, _ = opened(run, f"{LATENT}5")
    assert "data/0/0.js cannot be read" in document


WORKS = """
  const type = (text) => { $("query").value = text; $("query").dispatchEvent(new Event("input")); };
  const shown = () => [...document.querySelectorAll("#rows .row .number")].map((one) => one.textContent).join(" ");
  const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
  type("12"); note.byNumber = shown().split(" ")[0];
  choose("where", "explained"); type("FIRES on"); note.byExplanation = shown();
  choose("where", "fires"); type("t7"); note.byToken = $("found").textContent;
  note.linked = decodeURIComponent(location.hash);
  type(""); choose("sort", "peak"); note.strongest = shown().split(" ")[0];
  const low = document.querySelector('#filter-rows [data-metric="num_layers"][data-end="1"]');
  low.value = 2; $("filter-rows").dispatchEvent(new Event("input")); note.fewLayers = shown();
  note.filtered = location.hash.includes("f.num_layers=..2");
"""


def test_it_searches_sorts_and_filters(small, opened):
    note, _, complaints = opened(small, f"{LATENT}5", WORKS)
    assert complaints == []
    assert note["by-number"] == "12" and note["by-explanation"] == "7"
    layers = [layer_arrays(70, 3, layer, 50) for layer in range(3)]
    tokens = np.concatenate([arrays["token_id"][:, :4] for arrays in layers], axis=1)
    wanted = np.isin(tokens, [7]).any(1).sum()
    assert note["by-token"] == f"{wanted} of 70 latents"
    assert "latent=5" in note["linked"] and "q=t7" in note["linked"] and "in=fires" in note["linked"]
    assert int(note["strongest"]) == np.max([arrays["peak"] for arrays in layers], axis=0).argmax()
    assert sorted(note["few-layers"].split()) == ["0", "1"] and note["filtered"] == "true"


KEYS = """
  const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const before = getComputedStyle(document.documentElement).colorScheme;
  key("t"); note.turned = getComputedStyle(document.documentElement).colorScheme !== before;
  key("?"); note.help = $("help").open; $("help").close();
  key("/"); note.searching = document.activeElement.id;
  document.activeElement.blur();
  key("j"); note.next = location.hash;
"""


def test_keys_move_through_the_list(small, opened):
    note, _, complaints = opened(small, f"{LATENT}5", KEYS)
    assert complaints == []
    assert (note["turned"], note["help"], note["searching"]) == ("true", "true", "query")
    assert note["next"].endswith("latent=6")


SPEED = """
  const times = [];
  for (const word of ["t12", "t3", "t", "zzz", "4711", "t123", " t9"]) {
    $("query").value = word; $("query").dispatchEvent(new Event("input")); times.push(Number(note.searchMs));
  }
  note.searches = times.join(" ");
"""


def test_16384_latents_over_11_layers_open_and_search_at_once(tmp_path, opened, monkeypatch):
    run = made_up_run(tmp_path / "run", latents=16_384, layers=11, vocabulary=50_000)
    real = write._latent

    def only_the_first(store, number, layers, place, *rest):
        """A page is in one file with 31 others, so the pages of the other files make no difference."""
        return real(store, number, layers, place, *rest) if place < write.PER_FILE else {}

    monkeypatch.setattr(write, "_latent", only_the_first)
    write.write_browser(run)
    note, document, complaints = opened(run, f"{LATENT}5", SPEED)
    assert complaints == [] and "16,384 latents" in document
    searches = [float(time) for time in note["searches"].split()]
    assert float(note["ready-ms"]) < 2000
    assert float(np.median(searches)) < 100, searches
