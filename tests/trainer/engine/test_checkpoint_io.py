"""Foreign .pt files: what is read, and that hostile ones are refused before they run or swell."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from javisc.manifests.errors import UserError
from javisc.trainer.engine import checkpoint_io
from javisc.trainer.engine.checkpoint_io import read_pt, state_dict_of
from javisc.trainer.models.sync.checkpoint import read_sync_checkpoint
from javisc.trainer.use.families import published_model


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def packed(path: Path, data: bytes, **options: Any) -> Path:
    """An archive laid out as torch.save's around any pickle."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return path


def test_a_training_checkpoint_round_trips(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["betas"] = OmegaConf.create([0.9, 0.999])  # as an older torch keeps what it was given
    settings = {
        "model": {"params": {"sizes": [16, 7], "name": "x", "p": 0.1, "none": None, "on": True}},
        "b": "${model}",
    }
    content = {
        "model": model.state_dict(),
        "args": OmegaConf.create(settings),
        "optimizer": optimizer.state_dict(),
        "metrics": {"off": {"accuracy_1": 0.5, "mAP": np.float64(0.25), "dprime": np.float32(-1.5)}},
        "epoch": 3,
        "loss": 0.5,
        "extra": {"count": np.int64(-7), "flag": np.bool_(True), "factory": collections.defaultdict(list), "t": (1, 2)},
        "model_type": "AVSyncModel",
    }
    path = saved(tmp_path / "c.pt", content)
    got = read_pt(path)
    assert got["args"] == settings
    assert got["extra"] == {"count": -7, "flag": True, "factory": {}, "t": (1, 2)}
    assert torch.equal(got["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert got["optimizer"]["param_groups"][0]["betas"] == [0.9, 0.999]
    checkpoint = read_sync_checkpoint(path)
    assert checkpoint.metrics_nested and checkpoint.metrics == {"accuracy_1": 0.5, "mAP": 0.25, "dprime": -1.5}
    assert checkpoint.epoch == 3 and checkpoint.model.keys() == {"weight", "bias"}
    with pytest.raises(UserError, match="of no sync model that is known"):
        published_model(read_sync_checkpoint(saved(tmp_path / "d.pt", {"model": model.state_dict()})))


def test_a_bare_state_dict_is_found(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 1).state_dict()
    assert state_dict_of(read_pt(saved(tmp_path / "a.pt", state)), "a.pt").keys() == state.keys()
    assert (
        state_dict_of(read_pt(saved(tmp_path / "b.pt", {"state_dict": state, "step": 3})), "b.pt").keys()
        == state.keys()
    )
    with pytest.raises(UserError, match="no state dict"):
        state_dict_of(read_pt(saved(tmp_path / "c.pt", {"step": 3})), "c.pt")


HOSTILE = {
    "os.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: Calls(getattr, torch.Tensor, "__init__"),
    "getattr chain": lambda mark: Calls(getattr, Calls(getattr, OmegaConf, "load"), "__globals__"),
    "torch.hub.load": lambda mark: Calls(torch.hub.load, "x/y", "z"),
    "torch.load": lambda mark: Calls(torch.load, str(mark)),
    "builtins.bytearray": lambda mark: Calls(bytearray, 1 << 40),
    "a tensor made by its size": lambda mark: Calls(torch.FloatTensor, 1 << 40),
    "a storage made by its size": lambda mark: Calls(torch.UntypedStorage, 1 << 40),
    "open": lambda mark: Calls(open, str(mark), "w"),
    "a call of a mentioned type": lambda mark: Calls(str, [1]),
    "omegaconf create": lambda mark: Calls(OmegaConf.create, "a: 1"),
    "numpy array of objects": lambda mark: np.array([{}], dtype=object),
    "a function of ours": lambda mark: Calls(checkpoint_io.read_pt, str(mark)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_do_nothing(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = saved(tmp_path / "hostile.pt", {"model": {}, "args": HOSTILE[name](mark)})
    with pytest.raises(UserError, match=r"hostile\.pt"):
        read_pt(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_open_no_back_door(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol).dump(Calls(os.system, f"touch {mark}"))
    with pytest.raises(UserError, match=r"hostile\.pt"):
        read_pt(packed(tmp_path / "hostile.pt", buffer.getvalue()))
    assert not mark.exists()


def test_stand_ins_have_no_reach(tmp_path: Path) -> None:
    # State that aims at the instance's class or at a method ends in one attribute that nobody calls.
    data = b"\x80\x02comegaconf.nodes\nAnyNode\n)\x81}(X\x09\x00\x00\x00__class__K\x01X\x04\x00\x00\x00_valK\x05ub."
    assert read_pt(packed(tmp_path / "a.pt", data)) == 5
    data = b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\x00\x00\x00O\x85RX\x01\x00\x00\x00x\x86R."
    with pytest.raises(UserError, match="'O' is not a number"):
        read_pt(packed(tmp_path / "b.pt", data))
    data = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x04\x00\x00\x00zlib\x86R."
    with pytest.raises(UserError, match=r"b2\.pt"):
        read_pt(packed(tmp_path / "b2.pt", data))
    unknown = data.replace(b"X\x04\x00\x00\x00zlib", b"X\x04\x00\x00\x00nope")
    with pytest.raises(UserError, match="unknown encoding"):
        read_pt(packed(tmp_path / "b3.pt", unknown))
    number = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R"
    three = b"c_codecs\nencode\nX\x03\x00\x00\x00abcX\x06\x00\x00\x00latin1\x86R"
    data = b"\x80\x02" + number + three + b"\x86R."
    with pytest.raises(UserError, match=r"b4\.pt"):
        read_pt(packed(tmp_path / "b4.pt", data))
    data = b"\x80\x02}}K\x01s."  # a dict with a dict for its key cannot even be made
    with pytest.raises(UserError, match=r"b5\.pt"):
        read_pt(packed(tmp_path / "b5.pt", data))
    with pytest.raises(UserError, match="a tuple|as a key"):
        read_pt(saved(tmp_path / "b6.pt", {"model": {(1, 2): 3}}))


def test_shared_references_do_not_swell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_io, "MAX_NODES", 20_000)
    node: Any = {}
    for _ in range(60):
        node = [node, node]
    with pytest.raises(UserError, match="too deep or are too many"):
        read_pt(saved(tmp_path / "laughs.pt", node))
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UserError, match=r"loop\.pt"):
        read_pt(saved(tmp_path / "loop.pt", loop))


def test_archives_that_lie_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps({"a": 1}, 2)
    with pytest.raises(UserError, match="no such file"):
        read_pt(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="no zip archive"):
        read_pt(tmp_path / "text.pt")
    with pytest.raises(UserError, match="compressed"):
        read_pt(packed(tmp_path / "bomb.pt", data + bytes(1 << 20), compression=zipfile.ZIP_DEFLATED))
    whole = saved(tmp_path / "whole.pt", {"w": torch.arange(5000.0)}).read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pt"):
            read_pt(tmp_path / "cut.pt")
    with pytest.raises(UserError, match="broken pickle"):
        read_pt(packed(tmp_path / "broken.pt", b"\x80\x02\xff\xff"))
    with pytest.raises(UserError, match=r"short\.pt"):
        read_pt(packed(tmp_path / "short.pt", data[:-1]))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data.pkl", data)
    with pytest.raises(UserError, match=r"exactly one data\.pkl"):
        read_pt(tmp_path / "twice.pt")
    monkeypatch.setattr(checkpoint_io, "MAX_PICKLE_BYTES", 4)
    with pytest.raises(UserError, match="at most 4"):
        read_pt(packed(tmp_path / "large.pt", data))


def test_a_tensor_reaching_past_its_storage_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.pt", {"w": torch.arange(4.0)})
    rebuilt = tmp_path / "forged.pt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(rebuilt, "w") as out:
        for entry in archive.infolist():
            data = archive.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert data.count(b"K\x04") == 2  # the storage's length and the tensor's size
                data = data.replace(b"K\x04", b"K\x64")
            out.writestr(entry.filename, data)
    with pytest.raises(UserError, match=r"forged\.pt"):
        read_pt(rebuilt)
