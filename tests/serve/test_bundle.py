"""Bundles: complete, checked, without code in them. R-30 to R-32, R-36."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from serve_world import parts_of

from lcn.errors import CheckpointError, ServeError
from lcn.files import sha256_of
from lcn.serve.bundle import load_bundle, write_bundle
from lcn.serve.registry import bundle_path


@pytest.fixture
def copy(tmp_path, world) -> Path:
    return Path(shutil.copytree(world.bundle, tmp_path / "bundle"))


def test_a_bundle_is_the_model(world) -> None:
    bundle = load_bundle(world.bundle)
    for name, tensor in world.model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], tensor), name
    catalogue = bundle.catalogue
    assert catalogue.address("i5") == 5
    assert catalogue.address("nowhere") == catalogue.items
    assert catalogue.title(4) == "Item 4"
    assert catalogue.title(3) == "i3"
    assert catalogue.user("u7") == 7
    assert catalogue.user("stranger") == 0
    assert catalogue.index("request", "hour", "v3") == 3
    assert catalogue.index("request", "hour", "never seen") == 1


def test_the_version_names_the_bytes(tmp_path, world) -> None:
    parts = parts_of(world.model, world.dataset)
    one, other = (write_bundle(tmp_path / name, parts) for name in ("a", "b"))
    assert one.version == other.version
    with torch.no_grad():
        first = next(iter(world.model.parameters()))
        first[2, 0] += 1
        changed = write_bundle(tmp_path / "c", parts)
        first[2, 0] -= 1
    assert changed.version != one.version


def test_nothing_is_left_of_a_bundle_that_fails(tmp_path, world, monkeypatch) -> None:
    """R-01."""
    import lcn.serve.bundle as module

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.pq, "write_table", full)
    with pytest.raises(ServeError, match="No space"):
        write_bundle(tmp_path / "b", parts_of(world.model, world.dataset))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(world) -> None:
    with pytest.raises(ServeError, match="exists"):
        write_bundle(world.bundle, parts_of(world.model, world.dataset))


def edit_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def sign(folder: Path, name: str) -> None:
    """Make the manifest fit a changed file, as a forger would."""
    facts = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    edit_manifest(folder, lambda tree: tree["files"].__setitem__(name, facts))


def edit_tensors(folder: Path, change, name: str = "model.safetensors") -> None:
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file(tensors, folder / name)
    sign(folder, name)


def first_weight(tensors) -> str:
    return next(name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2)


def scale(tensors) -> None:
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(1.05)


MUTATIONS = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "not a bundle"),
    "cut manifest": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text()[:99]),
        "cannot read",
    ),
    "deep manifest": (lambda f: (f / "manifest.json").write_text("[" * 10**5), "cannot read"),
    "newer format": (
        lambda f: edit_manifest(f, lambda t: t.update(format_version=99)),
        "bundle format 99",
    ),
    "unknown key": (lambda f: edit_manifest(f, lambda t: t.update(surprise=1)), "surprise"),
    "bad name": (lambda f: edit_manifest(f, lambda t: t.update(name="../x")), "cannot name"),
    "not cacheable": (lambda f: edit_manifest(f, lambda t: t.update(cacheable="no")), "cacheable"),
    "other widths": (
        lambda f: edit_manifest(f, lambda t: t["config"].update(width=24)),
        "another model",
    ),
    "other vocabulary": (
        lambda f: edit_manifest(f, lambda t: t["dataset"]["item_fields"][0].update(size=5)),
        "another model",
    ),
    "flipped byte": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-1] + b"\x01"
        ),
        "SHA-256",
    ),
    "missing file": (lambda f: (f / "items.parquet").unlink(), "cannot read"),
    "missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop(first_weight(t))),
        "another model",
    ),
    "extra tensor": (
        lambda f: edit_tensors(f, lambda t: t.update(more=torch.ones(2))),
        "another model",
    ),
    "not finite": (
        lambda f: edit_tensors(f, lambda t: t[first_weight(t)].view(-1)[3:4].fill_(float("nan"))),
        "not finite",
    ),
    "other weights": (lambda f: edit_tensors(f, scale), "canary"),
    "index too large": (
        lambda f: edit_tensors(f, lambda t: t["item_IF"].fill_(10**6), "tables.safetensors"),
        "outside",
    ),
    "link": (
        lambda f: (
            (f / "users.parquet").rename(f.parent / "u"),
            (f / "users.parquet").symlink_to(f.parent / "u"),
        ),
        "not a file inside",
    ),
    "escaping path": (
        lambda f: edit_manifest(
            f, lambda t: t["files"].update({"../bundle.txt": {"bytes": 1, "sha256": "0"}})
        ),
        "not a file inside",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_bundle_is_refused_by_name(copy: Path, name: str) -> None:
    """R-31, R-32."""
    change, expected = MUTATIONS[name]
    change(copy)
    with pytest.raises(CheckpointError, match=expected):
        load_bundle(copy)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "tables.safetensors", "canary.safetensors", "items.parquet",
     "users.parquet", "manifest.json"],
)  # fmt: skip
def test_a_pickle_is_never_run(copy: Path, name: str) -> None:
    """R-30."""
    mark = copy.parent / "mark"
    (copy / name).write_bytes(pickle.dumps(Bomb(mark)))
    if name != "manifest.json":
        sign(copy, name)
    with pytest.raises(CheckpointError):
        load_bundle(copy)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../b", "a/b", "/etc", "a\0b", "", "x" * 65, "-a", ".hidden", "%2e%2e", "ａ", "a\n",
     "link", "absent", "file"],
)  # fmt: skip
def test_only_plain_names_of_bundles_are_loaded(tmp_path, name: str) -> None:
    """R-36."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    assert bundle_path(tmp_path, "real") == tmp_path / "real"
    with pytest.raises(ServeError):
        bundle_path(tmp_path, name)
