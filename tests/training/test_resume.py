import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_cases import (
    PAIRS,
    SAE,
    STEPS,
    TRAIN,
    Log,
    Stop,
    equal,
    last_manifest,
    make_source,
    run,
    state_on_disk,
    stop_after,
    weights,
)

from groupsae.errors import NumericalError, RunError, StorageError
from groupsae.training import checkpoint
from groupsae.training.fit import measure_scales
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.loop import PARTS


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    folder, log = tmp_path_factory.mktemp("whole"), Log()
    trained = run(folder=folder, log=log)
    return weights(trained), *state_on_disk(folder), log.without_seconds


def run_until_stopped(folder, steps, **options):
    with pytest.raises(Stop):
        run(folder=folder, progress=stop_after(steps), **options)


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 9, 13, STEPS])
def test_going_on_equals_never_having_stopped(tmp_path, never_stopped, steps):
    log = Log()
    run_until_stopped(tmp_path, steps, log=log)
    if not last_manifest(tmp_path):
        log.records.clear()
    trained = run(folder=tmp_path, log=log, resumed=log.cut)
    assert equal(weights(trained), never_stopped[0])
    marker, tensors = state_on_disk(tmp_path)
    assert marker == never_stopped[1]
    assert equal(tensors, never_stopped[2])
    assert log.without_seconds == never_stopped[3]


@pytest.mark.parametrize("steps", [3, 7, 10, 14])
def test_going_on_with_every_layer_of_a_token_equals_never_having_stopped(tmp_path, steps):
    settings = TRAIN.model_copy(update={"layers_per_token": "all", "save_every_tokens": 100})
    run_until_stopped(tmp_path, steps, train=settings)
    assert equal(weights(run(folder=tmp_path, train=settings)), weights(run(train=settings)))


def test_the_state_holds_weights_moments_dead_counters_meters_and_schedule(never_stopped):
    names = {name.split("/")[-1] for name in never_stopped[2]}
    parameters = ("W_enc", "b_enc", "W_dec", "b_dec")
    moments = {f"adam.{name}.{key}" for name in parameters for key in ("step", "exp_avg", "exp_avg_sq")}
    assert names == {f"sae.{name}" for name in parameters} | moments | {"silent", "meter", "faults", "schedule"}


def test_the_state_holds_for_how_long_latents_have_been_silent(tmp_path):
    run(folder=tmp_path, sae=SAE.model_copy(update={"k": 1}))
    _, tensors = state_on_disk(tmp_path)
    assert any(tensor.any() for name, tensor in tensors.items() if name.endswith("silent"))


def test_going_on_several_times_equals_never_having_stopped(tmp_path, never_stopped):
    settings = TRAIN.model_copy(update={"save_every_tokens": 1})
    for _ in range(5):
        # Going on reports the tokens seen before, so the first call is not a step.
        run_until_stopped(tmp_path, 4, train=settings)
    assert equal(weights(run(folder=tmp_path, train=settings)), never_stopped[0])


def test_going_on_starts_at_the_checkpoint_and_not_from_the_beginning(tmp_path):
    run_until_stopped(tmp_path, 9)
    found, seen = [], []
    run(folder=tmp_path, resumed=found.append, progress=seen.append)
    assert found[0].step == 8
    assert seen[0] == found[0].position.tokens == 512
    assert len(seen) == 1 + STEPS - 8
    assert sum(seen) == TRAIN.num_tokens


def test_a_source_that_fails_at_any_read_costs_nothing_but_the_steps_since(tmp_path, never_stopped):
    for reads in (5, 8, 10):
        folder = tmp_path / str(reads)
        source, left = make_source(), reads
        read = source.read

        def failing(rows, read=read):
            nonlocal left
            left -= 1
            if not left:
                raise NumericalError("Activations hold NaN")
            return read(rows)

        source.read = failing
        with pytest.raises(NumericalError):
            run(folder=folder, source=source)
        assert equal(weights(run(folder=folder)), never_stopped[0])


def test_a_finished_training_is_taken_as_it_is(tmp_path, never_stopped):
    run(folder=tmp_path)
    seen, log = [], Log()
    trained = run(folder=tmp_path, progress=seen.append, log=log)
    assert seen == [TRAIN.num_tokens]
    assert not log.records
    assert equal(weights(trained), never_stopped[0])


def test_a_checkpoint_that_lacks_a_group_is_not_gone_on_from(tmp_path):
    run_until_stopped(tmp_path, 9, groups=[("layers.1",)])
    with pytest.raises(RunError, match="has no state in this checkpoint"):
        run([("layers.1",), ("layers.0",)], folder=tmp_path)


# ---- whose checkpoint


def test_a_checkpoint_of_another_key_is_not_taken(tmp_path, never_stopped):
    run_until_stopped(tmp_path, 9, seed=5, key="other")
    found = []
    trained = run(folder=tmp_path, resumed=found.append)
    assert not found
    assert equal(weights(trained), never_stopped[0])


def test_an_interrupted_first_save_does_not_mix_with_the_checkpoint_of_another_key(tmp_path, monkeypatch):
    run_until_stopped(tmp_path, 5, seed=5, key="other")
    fail_in_save(monkeypatch, files=2)
    with pytest.raises(StorageError):
        run(folder=tmp_path)
    monkeypatch.undo()
    found = []
    trained = run(folder=tmp_path, seed=5, key="other", resumed=found.append)
    assert not found
    assert equal(weights(trained), weights(run(seed=5)))


def steps_on_disk(folder):
    manifests = {int(path.stem[5:]) for path in folder.glob("checkpoints/*")}
    for group in folder.glob("groups/*"):
        assert {int(path.stem[6:]) for path in group.iterdir()} == manifests
    return sorted(manifests)


@pytest.mark.parametrize(("keep", "steps"), [(1, [16]), (2, [12, 16]), (3, [8, 12, 16])])
def test_the_last_checkpoints_are_kept_and_no_other(tmp_path, keep, steps):
    run(folder=tmp_path, keep=keep)
    assert steps_on_disk(tmp_path) == steps


def test_snapshots_are_kept_for_good_and_change_nothing(tmp_path, never_stopped):
    settings = TRAIN.model_copy(update={"snapshots": (1, 200, 250)})
    trained = run(folder=tmp_path, train=settings)
    assert equal(weights(trained), never_stopped[0])
    assert steps_on_disk(tmp_path) == [1, 4, 12, STEPS]
    found = checkpoint.Checkpoints(tmp_path, "a").snapshots()
    assert {tokens: {Path(name).name for name in files} for tokens, files in found.items()} == {
        1: {"state-1.safetensors"},
        200: {"state-4.safetensors"},
        250: {"state-4.safetensors"},
    }


def test_clearing_leaves_nothing_to_go_on_from(tmp_path):
    run(folder=tmp_path)
    checkpoint.Checkpoints(tmp_path, "a").clear()
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


# ---- interruptions and damage


def fail_in_save(monkeypatch, files):
    """The disk refuses the state number `files`."""
    save, count = checkpoint.save_tensors, 0

    def save_tensors(tensors, path):
        nonlocal count
        count += 1
        if count == files:
            path.write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_tensors", save_tensors)


def test_a_save_that_the_disk_refuses_leaves_the_checkpoint_before_it_in_force(tmp_path, monkeypatch, never_stopped):
    fail_in_save(monkeypatch, files=4)  # the second group of the second save
    with pytest.raises(StorageError, match=r"state-8\.safetensors.*No space left"):
        run(folder=tmp_path)
    monkeypatch.undo()
    assert state_on_disk(tmp_path)[0]["step"] == 4
    found = []
    trained = run(folder=tmp_path, resumed=found.append)
    assert found[0].step == 4
    assert equal(weights(trained), never_stopped[0])


def test_a_save_that_is_killed_before_the_marker_leaves_the_checkpoint_before_it_in_force(tmp_path, monkeypatch):
    write = checkpoint.write_json

    def killed(path, value):
        if path.name == "step-8.json":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(checkpoint, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path)
    monkeypatch.undo()
    found = []
    run(folder=tmp_path, resumed=found.append)
    assert found[0].step == 4


def rewrite(file, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


DAMAGE = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "missing": lambda file: file.unlink(),
    "NaN": lambda file: rewrite(file, lambda t: t["adam.W_dec.exp_avg"][0].fill_(torch.nan)),
    "no moments": lambda file: rewrite(file, lambda t: [t.pop(name) for name in list(t) if name.startswith("adam.")]),
    "one moment less": lambda file: rewrite(file, lambda t: t.pop("adam.b_dec.exp_avg_sq")),
    "no counters": lambda file: rewrite(file, lambda t: t.pop("silent")),
    "counters of another width": lambda file: rewrite(
        file, lambda t: t.update(silent=torch.zeros(1, dtype=torch.int64))
    ),
    "weights of another shape": lambda file: rewrite(file, lambda t: t.update({"sae.b_enc": torch.zeros(24, 1)})),
    "weights of another precision": lambda file: rewrite(
        file, lambda t: t.update({"sae.b_enc": torch.zeros(24).half()})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_last_state_is_named_and_the_checkpoint_before_it_gone_on_from(tmp_path, damage, never_stopped):
    run_until_stopped(tmp_path, 9)
    damage(tmp_path / "groups/layers.0+2/state-8.safetensors")
    checkpoints, found = checkpoint.Checkpoints(tmp_path, "a"), []
    trained = run(folder=tmp_path, checkpoints=checkpoints, resumed=found.append)
    assert found[0].step == 4
    (fault,) = checkpoints.damaged
    assert "layers.0+2/state-8.safetensors is missing or damaged" in fault
    assert equal(weights(trained), never_stopped[0])
    assert steps_on_disk(tmp_path) == [12, STEPS]


def test_one_flipped_bit_in_a_state_is_noticed(tmp_path):
    run_until_stopped(tmp_path, 5)
    file = tmp_path / "groups/layers.1/state-4.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"state-4\.safetensors is missing or damaged: it is not as it was written"):
        run(folder=tmp_path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_only_state_is_named_and_never_gone_on_from(tmp_path, damage):
    run_until_stopped(tmp_path, 5)
    damage(tmp_path / "groups/layers.0+2/state-4.safetensors")
    with pytest.raises(RunError, match=r"layers\.0\+2/state-4\.safetensors.*--overwrite"):
        run(folder=tmp_path)


MANIFESTS = ["", "{", "[]", "3", "{}", '{"key": "a"}', '{"key": "a", "step": 4, "position": 3}', "\0", "[" * 9999]


@pytest.mark.parametrize("text", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_damaged_manifest_is_named_and_passed_over(tmp_path, text, never_stopped):
    run_until_stopped(tmp_path, 9)
    (tmp_path / "checkpoints/step-8.json").write_text(text)
    checkpoints = checkpoint.Checkpoints(tmp_path, "a")
    assert equal(weights(run(folder=tmp_path, checkpoints=checkpoints)), never_stopped[0])
    assert "checkpoints/step-8.json is damaged" in checkpoints.damaged[0]


@pytest.mark.parametrize("text", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_damaged_only_manifest_is_an_error(tmp_path, text):
    run_until_stopped(tmp_path, 5)
    (tmp_path / "checkpoints/step-4.json").write_text(text)
    with pytest.raises(RunError, match=r"checkpoints/step-4\.json is damaged.*--overwrite"):
        run(folder=tmp_path)


def test_the_step_count_of_adam_lies_where_the_fused_step_wants_it(tmp_path):
    run(folder=tmp_path)
    state = load_file(tmp_path / f"groups/layers.1/state-{STEPS}.safetensors")
    group = GroupTrainer(("layers.1",), measure_scales(make_source(), 100), 8, SAE, TRAIN, 0)
    group.sae.to("meta")  # a device that is not the file's
    group.sae.load_state_dict = lambda tensors: None
    group.restore(state)
    for parameter in group.sae.parameters():
        assert {moment.device for moment in group.optimizer.state[parameter].values()} == {parameter.device}


# ---- NaN


class Breaking:
    """A source that gives NaN, without noticing, after a number of reads."""

    def __init__(self, reads):
        self._source, self._left = make_source(), reads

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, rows):
        self._left -= 1
        x_LND = self._source.read(rows)
        return x_LND if self._left >= 0 else x_LND.fill_(torch.nan)


def test_activations_that_are_not_numbers_stop_training_and_keep_the_last_checkpoint(tmp_path, never_stopped):
    with pytest.raises(
        NumericalError,
        match=r"Group layers\S+: NaN or infinity in the activations of layers\S+.*, at step \d+",
    ):
        run(folder=tmp_path, source=Breaking(9))
    marker, tensors = state_on_disk(tmp_path)
    assert 0 < marker["step"] < STEPS
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert equal(weights(run(folder=tmp_path)), never_stopped[0])


@pytest.mark.parametrize("rate", [1e30, 3e38])
@pytest.mark.parametrize("tokens", [64, 1000])
def test_a_loss_that_explodes_stops_training_and_is_never_saved(tmp_path, rate, tokens):
    settings = TRAIN.model_copy(update={"learning_rate": rate, "num_tokens": tokens, "log_every_tokens": 10**9})
    try:
        run(folder=tmp_path, train=settings)
    except NumericalError as error:
        assert "roup layers.0+2" in str(error) and "step" in str(error) and "learning_rate" in str(error)
        assert not last_manifest(tmp_path)
    else:
        assert tokens == 64
        assert all(torch.isfinite(tensor).all() for tensor in state_on_disk(tmp_path)[1].values())


def test_weights_that_are_not_numbers_are_never_saved(tmp_path):
    """One step whose loss is finite, but whose update is not."""
    settings = TRAIN.model_copy(update={"learning_rate": 1e39, "num_tokens": 64, "decay_share": 0.0})
    with pytest.raises(NumericalError, match="weights of group"):
        run(folder=tmp_path, train=settings)
    assert not last_manifest(tmp_path)


def test_the_manifest_tells_where_the_seconds_went(tmp_path):
    run(folder=tmp_path)
    seconds = json.loads(last_manifest(tmp_path).read_text())["seconds"]
    assert set(seconds) == {*PARTS, *PAIRS.names}
    assert sum(seconds[name] for name in PAIRS.names) == pytest.approx(seconds["SAE steps"])
