"""A suite: the SAEs of one partition, addressed by hookpoint, in raw activations."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.config import PerLayer
from groupsae.errors import ConfigError, PartitionError, RunError
from groupsae.hub.place import Place, place_of
from groupsae.partition import Group, Partition, group_name
from groupsae.records.types.lineage import Lineage
from groupsae.records.types.suites import SuitesRecord, suite_groups
from groupsae.saes.base import Latents, SparseAutoencoder
from groupsae.saes.bench_object import BenchSAE, bench_sae
from groupsae.saes.folded import Folded
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.registry import ARCHITECTURES, build_sae
from groupsae.saes.scales import Scales
from groupsae.saes.topk import TopKSAE
from groupsae.saes.weights import load_tensors, save_tensors
from groupsae.storage import within, write_atomically, write_json

SCALES_FILE = "scales.safetensors"
LAYER_MAPS_FILE = "layer_maps.safetensors"
REMEDY = "Train again to make it."


@dataclass(frozen=True)
class BoundSAE:
    """An SAE bound to a hookpoint: raw activations x (..., D) in and out, latents (..., S) between.

    z = s (x - c)        x_hat = z_hat / s + c

    Where layers of the group have maps of their own, the SAE sees z' and gives z'_hat (`LayerMaps`); a layer's own
    encoder bias is in `sae` already.
    """

    hookpoint: str
    sae: SparseAutoencoder
    scale: float
    center_D: Tensor
    maps: LayerMaps | None = None
    layer: int = 0

    def encode(self, x: Tensor) -> Tensor:
        """The latents (..., S) of raw activations (..., D)."""
        z_ND = self._to_group(self._normalize(x.reshape(-1, x.shape[-1])))
        return self.sae.encode(z_ND).reshape(*x.shape[:-1], self.sae.d_sae)

    def encode_sparse(self, x_ND: Tensor) -> Latents:
        """The active latents of raw activations (N, D)."""
        return self.sae.encode_sparse(self._to_group(self._normalize(x_ND)))

    def decode(self, latents: Tensor) -> Tensor:
        """The raw activations (..., D) that latents (..., S) stand for."""
        return self._restore(self.sae.decode(latents))

    def decode_sparse(self, latents: Latents) -> Tensor:
        """The raw activations (N, D) that active latents stand for."""
        return self._restore(self.sae.decode_sparse(latents))

    def __call__(self, x: Tensor) -> Tensor:
        """The reconstruction of raw activations, in their shape and dtype."""
        z_hat_ND = self.sae(self._to_group(self._normalize(x.reshape(-1, x.shape[-1]))))
        return self._restore(z_hat_ND).reshape(x.shape).to(x.dtype)

    def _normalize(self, x: Tensor) -> Tensor:
        return (x.float() - self.center_D) * self.scale

    def _to_group(self, z_ND: Tensor) -> Tensor:
        if self.maps is None:
            return z_ND
        return self.maps.to_group(z_ND, torch.full((len(z_ND),), self.layer, device=z_ND.device))

    def _restore(self, z_hat: Tensor) -> Tensor:
        z = z_hat if self.maps is None else self.maps.from_group(z_hat, self.layer)
        return z / self.scale + self.center_D


class Suite:
    """The SAEs of a partition: `suite["layers.3"]` is the SAE that serves this hookpoint.

    One SAE object serves all hookpoints of its group; center and scale are the hookpoint's own, and what
    `layer_maps` hold, by group.
    """

    def __init__(
        self,
        partition: Partition,
        saes: dict[str, SparseAutoencoder],
        scales: Scales,
        layer_maps: Mapping[str, LayerMaps] | None = None,
    ) -> None:
        self.partition, self.saes, self.scales, self.layer_maps = partition, saes, scales, dict(layer_maps or {})

    def __getitem__(self, hookpoint: str) -> BoundSAE:
        group = self.partition.group_of(hookpoint)
        sae = self.saes[group_name(group)]
        scale, center_D = self.scales.of(hookpoint)
        maps, layer = self.layer_maps.get(group_name(group)), group.index(hookpoint)
        if maps is not None:
            sae = maps.with_bias(sae, layer)
        return BoundSAE(hookpoint, sae, scale, center_D.to(sae.W_enc.device), maps, layer)

    def at_k(self, k: int) -> Suite:
        """The same SAEs with another number of active latents; weights are shared.

        Meant for TopK SAEs that were trained with `nested_k`. Raises ConfigError for another architecture.
        """
        chosen: dict[str, SparseAutoencoder] = {}
        for name, sae in self.saes.items():
            if not isinstance(sae, TopKSAE):
                raise ConfigError(
                    f"The SAE of {name} is of architecture {sae.config.architecture!r}, whose number of active latents "
                    "is learned; only that of topk can be chosen."
                )
            chosen[name] = sae.at_k(k)
        return Suite(self.partition, chosen, self.scales, self.layer_maps)

    def attach(
        self,
        model: nn.Module,
        *,
        layers: Iterable[str] | None = None,
        record: bool = True,
        keep_error: bool = True,
        skip_first: int = 1,
        skip_ids: Sequence[int] = (),
    ) -> Any:
        """A context manager in which the model's forward passes give latents of all layers, and can be edited.

            with suite.attach(model) as latents:
                latents.steer("layers.3", 17, 0.5)
                model.generate(**prompt)
            latents["layers.3"].dense()                                   # (B, T, S)

        What it gives is `groupsae.attach.Attached`. Without edits the model computes exactly what it does otherwise.

        layers      the layers to read and edit; all that the suite has
        record      whether latents are kept; without it, steering costs almost nothing
        keep_error  whether what SAEs do not reconstruct stays; without it, reconstructions replace activations
        skip_first  positions at the start of each text without latents and edits, as training leaves them out
        skip_ids    token ids without latents and edits, such as those of a chat template

        Raises HookpointError for layers that the suite or the model does not have, ModelError for another width.
        """
        attached = importlib.import_module("groupsae.attach").Attached  # lies above: needs models, as no SAE does
        return attached(
            self,
            model,
            layers=layers,
            record=record,
            keep_error=keep_error,
            skip_first=skip_first,
            skip_ids=skip_ids,
        )

    def to_saebench(self, hookpoint: str, *, model_name: str, **options: Any) -> BenchSAE:
        """One hookpoint's SAE as SAEBench and sae-probes evaluate it; options are those of `bench_sae`.

        `model_name` is what TransformerLens calls the model. Raises HookpointError for a place that it does not name.
        """
        return bench_sae(Folded.of(self[hookpoint]), hookpoint, model_name=model_name, **options)

    def save(self, folder: str | Path, name: str = "groups") -> None:
        """Write `suite.json`, `scales.safetensors` and `groups/<group>/` into a folder.

        Raises RunError if the folder holds a suite already.
        """
        folder = Path(folder)
        if (folder / "suite.json").exists():
            raise RunError(f"{folder} holds a suite already; give another folder.")
        for group, sae in self.saes.items():
            save_sae(sae, folder / "groups" / group, self.layer_maps.get(group))
        write_atomically(folder / SCALES_FILE, self.scales.save)
        write_suite_index(folder, {name: self.partition})

    @classmethod
    def load(
        cls,
        source: str | Path,
        name: str | None = None,
        *,
        layer: str | Sequence[str] | None = None,
        device: str = "cpu",
        revision: str | None = None,
    ) -> Suite:
        """The suite in a folder, a run directory, or a release `user/name` on the Hugging Face hub.

        `name` picks one where there are several (`baseline`, `groups`). With `layer`, one or more hookpoints, only the
        groups that serve these are read, and downloaded; the suite then has all layers of these groups. `revision` is
        a branch, tag or commit on the hub.

        Raises RunError if files are missing, damaged, or do not fit their config; PartitionError for a layer that is in
        no group; HubError if a release is not there or cannot be reached.
        """
        place = place_of(source, revision)
        _, named = suite_named(place.folder, name)
        if layer is not None:
            named = named.around([layer] if isinstance(layer, str) else layer)
        place.fetch([SCALES_FILE])
        partition, saes, layer_maps = named.base, {}, {}
        for group, name, file in zip(named.groups, partition.names, named.names, strict=True):
            place.fetch([f"groups/{file}/cfg.json", f"groups/{file}/sae.safetensors"])
            saes[name] = load_sae(place.folder / "groups" / file).to(device)
            if (maps := _load_own(place, file, len(group), saes[name])) is not None:
                layer_maps[name] = maps.to(device)
        scales = Scales.load(place.folder / SCALES_FILE, partition.hookpoints).to(torch.device(device))
        for group in partition.groups:
            _require_fit(scales, group, saes[group_name(group)], place.folder)
        return cls(partition, saes, scales, layer_maps)


def _load_own(place: Place, name: str, layers: int, sae: SparseAutoencoder) -> LayerMaps | None:
    """What layers of a group have of their own, if anything."""
    folder = place.folder / "groups" / name
    per_layer = _per_layer_of(folder)
    if not per_layer.any:
        return None
    place.fetch([f"groups/{name}/{LAYER_MAPS_FILE}"])
    return load_layer_maps(folder, per_layer, sae.d_model, sae.d_sae, layers)


def _require_fit(scales: Scales, group: Group, sae: SparseAutoencoder, folder: Path) -> None:
    form = (tuple(scales.scale_L.shape), tuple(scales.center_LD.shape))
    wanted = ((len(scales.hookpoints),), (len(scales.hookpoints), sae.d_model))
    if form != wanted or not (scales.scale_L > 0).all():
        raise RunError(
            f"{folder / 'scales.safetensors'} does not fit the SAE of {group_name(group)}, of width {sae.d_model}: "
            f"each hookpoint needs one scale above 0 and a center of that width; found {form}. {REMEDY}"
        )


def write_suite_index(folder: Path, partitions: dict[str, Partition]) -> None:
    """Write which suites a folder holds, by name."""
    suites = {name: suite_groups(partition) for name, partition in partitions.items()}
    write_json(folder / "suite.json", SuitesRecord(suites).model_dump(mode="json"))


def read_suite_index(folder: Path) -> dict[str, Partition]:
    """The partitions of the suites in a folder, by name. Raises RunError if there are none."""
    file = folder / "suite.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        partitions = SuitesRecord.model_validate(index).partitions
        for partition in partitions.values():
            _require_folders(folder / "groups", partition)
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no trained SAEs (no suite.json). Run `groupsae train {folder}` first."
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, PartitionError, RunError) as error:
        raise RunError(f"{file} is damaged: {error}. {REMEDY}") from error
    if not partitions:
        raise RunError(f"{file} is damaged: it names no suite. {REMEDY}")
    return partitions


def suite_named(folder: Path, name: str | None = None) -> tuple[str, Partition]:
    """The name and partition of one suite in a folder: that of groups where none is named and it has one.

    Raises RunError for a name that it does not have.
    """
    partitions = read_suite_index(folder)
    first = next((found for found in partitions if found == "groups" or found.startswith("groups-")), None)
    name = name or first or next(iter(partitions))
    if name not in partitions:
        raise RunError(f"{folder} has no suite {name!r}; it has {', '.join(partitions)}.")
    return name, partitions[name]


def _require_folders(folder: Path, partition: Partition) -> None:
    """Raises RunError for a group whose name is not that of a folder right below this one."""
    for name in partition.names:
        if within(folder, name).parent != folder:
            raise RunError(f"{name[:200]!r} is no name of a folder")


def save_sae(sae: SparseAutoencoder, folder: Path, maps: LayerMaps | None = None) -> None:
    """Write `sae.safetensors`, `cfg.json` and what layers have of their own, each whole or not at all."""
    if maps is not None:
        save_layer_maps(maps, folder)
    write_atomically(folder / "sae.safetensors", lambda path: save_tensors(sae.state_dict(), path))
    cfg = {"d_model": sae.d_model, "sae": sae.config.model_dump(mode="json")}
    if sae.lineage is not None:
        cfg["lineage"] = sae.lineage.model_dump(mode="json")
    if maps is not None:
        cfg["per_layer"] = maps.per_layer.names
    write_json(folder / "cfg.json", cfg)


def load_sae(folder: Path) -> SparseAutoencoder:
    """The SAE that `save_sae` wrote, frozen. Raises RunError if names, shapes, dtypes or finiteness are off."""
    file = folder / "cfg.json"
    try:
        cfg = json.loads(file.read_text(encoding="utf-8"))
        config = ARCHITECTURES[cfg["sae"]["architecture"]][0](**cfg["sae"])
        with torch.device("meta"):  # sizes only: a config may promise more than there is memory for
            promised = build_sae(_width(cfg["d_model"]), config).state_dict()
        lineage = Lineage.model_validate(cfg["lineage"]) if "lineage" in cfg else None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, ConfigError) as error:
        raise RunError(f"{file} is missing or damaged: {error}. {REMEDY}") from error
    tensors = load_tensors(folder / "sae.safetensors", promised, remedy=REMEDY)
    sae = build_sae(cfg["d_model"], config)
    sae.load_state_dict(tensors)
    sae.lineage = lineage
    return sae.requires_grad_(False)


def save_layer_maps(maps: LayerMaps, folder: Path) -> None:
    """Write `layer_maps.safetensors`, whole or not at all."""
    write_atomically(folder / LAYER_MAPS_FILE, lambda path: save_tensors(maps.state_dict(), path))


def load_layer_maps(folder: Path, per_layer: PerLayer, d_model: int, d_sae: int, layers: int) -> LayerMaps:
    """The maps of a group of so many layers that `save_layer_maps` wrote. Raises RunError if it does not fit."""
    with torch.device("meta"):
        promised = LayerMaps(layers, d_model, per_layer, d_sae).state_dict()
    tensors = load_tensors(folder / LAYER_MAPS_FILE, promised, remedy=REMEDY)
    maps = LayerMaps(layers, d_model, per_layer, d_sae)
    maps.load_state_dict(tensors)
    return maps.requires_grad_(False)


def _per_layer_of(folder: Path) -> PerLayer:
    file = folder / "cfg.json"
    try:
        return PerLayer.parse(tuple(json.loads(file.read_text(encoding="utf-8")).get("per_layer", ())))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is missing or damaged: {error}. {REMEDY}") from error


def _width(d_model: Any) -> int:
    if type(d_model) is not int or d_model < 1:
        raise ValueError(f"d_model = {d_model!r} is no width")
    return d_model
