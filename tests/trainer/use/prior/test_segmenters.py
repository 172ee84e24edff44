"""`javisc build prior masklets --segmenter` with a tiny SAM 2: windows between annotations, each in a session of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.use.prior.objects import rle
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.prior.segmenters import Segmenter
from support.annotated import moving, write


@pytest.fixture
def model(segmenter: Path) -> Path:
    return segmenter


def test_a_window_is_followed_from_both_sides_and_made_again_alone(model: Path) -> None:
    segmenter = Segmenter(str(model))
    loaded = segmenter.load("cpu")
    objects = [moving(1, 5), moving(2, 5)]
    pictures = np.zeros((5, 120, 160, 3), np.uint8)
    pictures[objects[0]] = 200
    ends: list[tuple[Any, Any]] = [(rle.encode(masks[0]), rle.encode(masks[4])) for masks in objects]
    made = segmenter.window(loaded, pictures, ends)
    assert set(made) == {0, 1} and all(len(masks) == 3 and masks[0].shape == (120, 160) for masks in made.values())
    again = segmenter.window(loaded, pictures, ends)
    assert all(np.array_equal(a, b) for number in made for a, b in zip(made[number], again[number], strict=True))

    # Blended: what one side alone says carries more weight the nearer its annotation is.
    seen: list[Any] = []
    loaded_ahead = segmenter._followed
    segmenter._followed = lambda *given: seen.append(found := loaded_ahead(*given)) or found  # type: ignore[method-assign]
    segmenter.window(loaded, pictures, ends)
    ahead, back = (side[0] for side in seen)
    blended = 0.75 * ahead[1] + 0.25 * back[3]
    assert np.array_equal(made[0][0], blended > 0) and len(ahead) == len(back) == 5
    # Gone at the far end: followed from the near one only.
    assert set(segmenter.window(loaded, pictures, [ends[0], (None, None)])) == {0}
    assert len(segmenter.window(loaded, pictures, [(None, ends[0][1])])[0]) == 3


@pytest.mark.usefixtures("here")
def test_masks_are_the_annotations_where_there_are_some(model: Path, tmp_path: Path) -> None:
    truth = moving(1, 13, 240, 320, side=44)
    write(tmp_path / "raw/v.mp4", [truth])
    settings = {"raw": [str(tmp_path / "raw")], "segmenter": str(model)}
    made = run("masklets", settings, str(tmp_path / "pool"), RunOptions(workers=1))
    assert made.samples == 1
    header = json.loads((tmp_path / "pool/dataset.json").read_text())["prior"]
    assert header["segmenter"] == "Sam2VideoModel" and len(header["weights"]) == 64
    [key] = Dataset.open(tmp_path / "pool").manifest().collect()["key"]
    told = json.loads(Dataset.open(tmp_path / "pool").read(key)["json"])["masks"]
    assert told["annotated"] == [0, 4, 8, 12]
    for tick in told["annotated"]:
        assert np.array_equal(rle.decode({"size": told["size"], "counts": told["counts"][tick]}), truth[tick])


def test_several_annotations_at_once_would_follow_the_first_alone(model: Path) -> None:
    """The trap that a window has a session and an annotation of its own for."""
    network, processor, device = Segmenter(str(model)).load("cpu")
    names = [1]
    session = processor.init_video_session(video=np.zeros((3, 120, 160, 3), np.uint8), inference_device=device)
    for frame in (0, 2):
        processor.add_inputs_to_inference_session(
            session, frame, obj_ids=list(names), input_masks=[torch.from_numpy(moving(frame, 1)[0])]
        )
    with torch.inference_mode():
        network(inference_session=session, frame_idx=0)
    assert session.output_dict_per_obj[0]["cond_frame_outputs"].keys() == {0} and names == [1]


def test_other_classes_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["SamModel"]}')
    with pytest.raises(
        UserError, match="names the class SamModel; known are Sam2VideoModel, EdgeTamVideoModel, Sam3VideoModel"
    ):
        Segmenter(str(tmp_path))
    with pytest.raises(UserError, match="is no folder: give a local folder"):
        Segmenter("facebook/sam2.1-hiera-large")
    (tmp_path / "config.json").write_text('{"architectures": ["Sam2VideoModel"], "model_type": "sam2_video"}')
    with pytest.raises(UserError, match="--segmenter .* cannot be loaded"):
        Segmenter(str(tmp_path)).load("cpu")
