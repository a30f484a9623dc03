"""Encoders with trained weights: checkpoints as people have them, and the same vectors as the model's own."""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from curation.archive.sample import Member, Sample
from curation.encoders import build_encoder, fit_artefact
from curation.encoders.open_clip import quick_gelu, rgb_bands
from curation.errors import RequestError

RGB = ("red", "green", "blue")
BYTE = np.tile(np.float32([0, 255]), (3, 1))
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SIGLIP = {
    "embed_dim": 16, "init_logit_bias": -10, "custom_text": True,
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_model_pretrained": False,
                   "timm_pool": "avg", "timm_proj": "linear"},
    "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}  # fmt: skip
MODELS = {
    "tiny": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-quickgelu": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-wide": {"embed_dim": 16, "vision_cfg": {**VISION, "width": 48}, "text_cfg": TEXT},
    "tiny-timm": SIGLIP,
}


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def sample(pixels: NDArray, bands: tuple[str, ...] = RGB) -> Sample:
    return Sample("key", 0, pixels, np.ones(pixels.shape[1:], bool), bands, Member("key.png", None, 0))


def tiles(n: int = 6, bands: int = 3, height: int = 40, width: int = 40) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, bands, height, width), dtype=np.uint8)


def clip_config(checkpoint: object, **change: object) -> dict:
    return {
        "name": "open_clip", "architecture": "tiny", "checkpoint": str(checkpoint), "quick_gelu": False,
        "rgb": list(RGB), "batch": 4, "threads": 1, **change,
    }  # fmt: skip


def timm_config(checkpoint: object, **change: object) -> dict:
    return {
        "name": "timm", "architecture": "resnet10t", "checkpoint": str(checkpoint), "size": 64, "mean": None,
        "std": None, "batch": 4, "threads": 1, **change,
    }  # fmt: skip


def made(config: dict, bands: tuple[str, ...] = RGB, dtype: str = "uint8", ranges: NDArray = BYTE):
    artefact = fit_artefact(config, [], bands, ranges, 0)
    return build_encoder(config, artefact, bands, dtype, "cpu", 1), artefact


def embed(encoder, pixels: NDArray, bands: tuple[str, ...] = RGB) -> NDArray[np.float32]:
    prepared = np.stack([encoder.prepare(sample(tile, bands)) for tile in pixels])
    step = encoder.batch
    return np.concatenate([encoder.encode(prepared[start : start + step]) for start in range(0, len(prepared), step)])


def clip_model(name: str = "tiny", seed: int = 0):
    torch.manual_seed(seed)
    return open_clip.create_model(name).eval()


def save(path: Path, state: dict, form: str) -> Path:
    if form == "safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    elif form == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}, path)
    else:
        torch.save(state, path)
    return path


def own_vectors(model, preprocess, pixels: NDArray) -> NDArray[np.float32]:
    """As open_clip's own transform and model give them."""
    images = torch.stack([preprocess(Image.fromarray(tile.transpose(1, 2, 0))) for tile in pixels])
    with torch.inference_mode():
        vectors = model.encode_image(images).numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["tiny", "tiny-timm"])
@pytest.mark.parametrize("form,suffix", [("plain", "pt"), ("training", "pt"), ("safetensors", "safetensors")])
def test_open_clip_gives_the_models_own_vectors(tmp_path, name, form, suffix):
    model = clip_model(name)
    path = save(tmp_path / f"weights.{suffix}", model.state_dict(), form)
    encoder, artefact = made(clip_config(path, architecture=name))
    preprocess = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    # open_clip resizes in 8 bits, we in floats with one rounding: a pixel may differ by 1
    for size, tolerance in ((32, 1e-5), (40, 2e-2)):
        pixels = tiles(height=size, width=size)
        np.testing.assert_allclose(embed(encoder, pixels), own_vectors(model, preprocess, pixels), atol=tolerance)
    assert artefact["checkpoint"].tobytes() == hashlib.sha256(path.read_bytes()).digest()
    assert encoder.dim == 16


def test_rows_do_not_depend_on_their_neighbours(tmp_path):
    encoder, _ = made(clip_config(save(tmp_path / "a.pt", clip_model().state_dict(), "plain")))
    whole, order = embed(encoder, tiles()), [5, 1, 3, 0, 2, 4]
    assert np.array_equal(embed(encoder, tiles()[order]), whole[order])
    assert np.array_equal(np.concatenate([embed(encoder, tiles()[i : i + 1]) for i in range(6)]), whole)


def test_text_lies_in_the_same_space(tmp_path):
    model = clip_model()
    encoder, _ = made(clip_config(save(tmp_path / "a.pt", model.state_dict(), "plain")))
    prompts = ["a satellite image of a harbour", "desert"]
    with torch.inference_mode():
        own = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(prompts)).numpy()
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_text(prompts), own, atol=1e-5)


def test_quick_gelu_is_what_the_config_says(tmp_path):
    path = save(tmp_path / "a.pt", clip_model().state_dict(), "plain")
    vectors = {gelu: embed(made(clip_config(path, quick_gelu=gelu))[0], tiles()) for gelu in (True, False)}
    named = embed(made(clip_config(path, architecture="tiny-quickgelu", quick_gelu=None))[0], tiles())
    assert np.array_equal(vectors[True], named)
    assert not np.array_equal(vectors[True], vectors[False])


def test_a_bare_file_that_might_need_quick_gelu_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "curation"):
        assert quick_gelu("tiny-wide", None, None) is None
        assert not caplog.records
        assert quick_gelu("tiny", None, None) is None
        assert "encoder.quick_gelu" in caplog.text
    assert quick_gelu("ViT-B-32", "openai", None) is True
    assert quick_gelu("ViT-B-32", "laion2b_s34b_b79k", None) is None
    assert quick_gelu("ViT-B-32", "openai", False) is False


def test_the_bands_behind_red_green_and_blue():
    nothing = (None, None, None)
    assert rgb_bands(RGB, ("B02", "B03", "B04", "B08")) == ((2, 1, 0), nothing)
    assert rgb_bands(("b08", "B04", "B03"), ("B02", "B03", "B04", "B08")) == ((3, 2, 1), nothing)
    assert rgb_bands(RGB, ("S1GRD.vv", "S2L2A.B02", "S2L2A.B03", "S2L2A.B04")) == ((3, 2, 1), nothing)
    assert rgb_bands(RGB, ("VV",)) == ((0, 0, 0), nothing)
    assert rgb_bands(["VV", "VH", "VV - VH"], ("S1GRD.vv", "S1GRD.vh")) == ((0, 1, 0), (None, None, 1))
    assert rgb_bands(["a-b", "b", "a"], ("a-b", "a", "b")) == ((0, 2, 1), nothing)  # a band may be called so
    with pytest.raises(RequestError, match=r"encoder\.rgb: no band 'red'; name three of VV, VH"):
        rgb_bands(RGB, ("VV", "VH"))


def test_reflectance_is_brightened_and_radar_gets_false_colours(tmp_path):
    """As the model's own preprocessing of the composite as an 8-bit picture."""
    path = save(tmp_path / "a.pt", clip_model().state_dict(), "plain")
    eight = tiles(height=32, width=32)
    plain, _ = made(clip_config(path))
    for bands, state, rgb, values in (
        (("B02", "B03", "B04"), "reflectance", RGB, (eight / 255 * 0.4)[:, ::-1]),
        (("vv", "vh"), "db", ["VV", "VH", "VV-VH"], None),
    ):
        if values is None:
            vv, vh = eight[:, 0] / 255 * 25 - 25, eight[:, 1] / 255 * 25 - 32
            values = np.stack([vv, vh], axis=1)
            eight = np.stack([eight[:, 0], eight[:, 1], np.clip((vv - vh) / 15, 0, 1) * 255], axis=1)
        one = replace(sample(values[0].astype(np.float32), bands), radiometry=state)
        config, ranges = clip_config(path, rgb=rgb, rgb_range=None), np.tile(np.float32([-50, 50]), (len(bands), 1))
        artefact = fit_artefact(config, [one], bands, ranges, 0)
        encoder = build_encoder(config, artefact, bands, "float32", "cpu", 1)
        pixels = values.astype(np.float32)
        prepared = encoder.prepare(one)
        np.testing.assert_allclose(prepared, eight[0] / 255, atol=1e-5)
        np.testing.assert_allclose(
            embed(encoder, pixels, bands), embed(plain, np.rint(eight).astype(np.uint8)), atol=2e-2
        )
    with pytest.raises(RequestError, match="only for dB its range is known"):
        fit_artefact(clip_config(path, rgb=["a", "b", "a-b"]), [], ("a", "b"), ranges, 0)
    given = fit_artefact(clip_config(path, rgb_range=[0, 0.3]), [], RGB, BYTE, 0)
    np.testing.assert_allclose(given["rgb_range"], [[0, 0.3]] * 3)


def test_reflectances_are_scaled_by_the_fixed_range(tmp_path):
    encoder, _ = made(clip_config(save(tmp_path / "a.pt", clip_model().state_dict(), "plain")))
    bands, ranges = ("B02", "B03", "B04", "B08"), np.tile(np.float32([1000, 4000]), (4, 1))
    wide, _ = made(clip_config(tmp_path / "a.pt"), bands, "uint16", ranges)
    eight = tiles(height=32, width=32)
    reflectance = np.zeros((6, 4, 32, 32), np.uint16)
    reflectance[:, [2, 1, 0]] = np.rint(1000 + eight / 255 * 3000)
    assert wide.prepare(sample(reflectance[0], bands)).dtype == np.float32
    np.testing.assert_allclose(embed(wide, reflectance, bands), embed(encoder, eight), atol=1e-3)


def test_a_clip_model_sees_the_centre_of_a_long_tile(tmp_path):
    encoder, _ = made(clip_config(save(tmp_path / "a.pt", clip_model().state_dict(), "plain")))
    long = tiles(1, height=32, width=64)
    assert np.array_equal(embed(encoder, long), embed(encoder, long[..., 16:48]))


@pytest.mark.parametrize("architecture", ["resnet10t", "test_vit"])
@pytest.mark.parametrize("form,suffix", [("plain", "pth"), ("training", "pt"), ("safetensors", "safetensors")])
def test_timm_gives_the_models_own_features(tmp_path, architecture, form, suffix):
    torch.manual_seed(0)
    size = {"img_size": 64} if architecture == "test_vit" else {}
    model = timm.create_model(architecture, in_chans=5, num_classes=7, **size).eval()
    path = save(tmp_path / f"weights.{suffix}", model.state_dict(), form)
    bands, pixels = tuple("abcde"), tiles(bands=5, height=64, width=64)
    encoder, _ = made(timm_config(path, architecture=architecture), bands, ranges=np.tile(np.float32([0, 255]), (5, 1)))
    with torch.inference_mode():
        own = model.forward_head(model.forward_features(torch.as_tensor(pixels / 255).float()), pre_logits=True).numpy()
    np.testing.assert_allclose(
        embed(encoder, pixels, bands), own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-4
    )


def test_timm_normalises_as_the_model_or_the_config_says(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0).eval()
    path = save(tmp_path / "a.pth", model.state_dict(), "plain")
    pixels = tiles(height=64, width=64)
    own = embed(made(timm_config(path))[0], pixels)
    same = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert np.array_equal(own, embed(made(timm_config(path, **same))[0], pixels))
    assert not np.array_equal(own, embed(made(timm_config(path, mean=[0, 0, 0], std=[1, 1, 1]))[0], pixels))
    with pytest.raises(RequestError, match=r"encoder\.mean has 1 numbers for 3 bands"):
        made(timm_config(path, mean=[0]))


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    clip = save(tmp_path / "clip.pt", clip_model().state_dict(), "plain")
    resnet = save(tmp_path / "resnet.pth", timm.create_model("resnet10t").state_dict(), "plain")
    vit = save(tmp_path / "vit.safetensors", timm.create_model("test_vit").state_dict(), "safetensors")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"a": Path("object")}, tmp_path / "pickle.pt")
    wrong = [
        clip_config(clip, architecture="tiny-wide"),
        clip_config(resnet),
        clip_config(vit),
        clip_config(tmp_path / "text.pt"),
        clip_config(tmp_path / "pickle.pt"),
        clip_config(tmp_path / "none.pt"),
        clip_config(clip, architecture="ViT-X"),
        clip_config("no_such_tag", architecture="ViT-B-32"),
        {**clip_config(clip), "checkpoint": None},
        timm_config(clip),
        timm_config(vit),
        timm_config(resnet, architecture="no_such_model"),
        timm_config(tmp_path / "pickle.pt"),
        {**timm_config(resnet), "checkpoint": None},
    ]
    for config in wrong:
        with pytest.raises(RequestError, match=r"encoder") as error:
            made(config)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(RequestError, match="4 input channels"):
        made(timm_config(resnet), tuple("abcd"), ranges=np.tile(np.float32([0, 255]), (4, 1)))


def test_other_weights_under_the_same_name_are_noticed(tmp_path):
    for config, states in (
        (clip_config(tmp_path / "clip.pt"), [clip_model(seed=seed).state_dict() for seed in (0, 1)]),
        (timm_config(tmp_path / "net.pt"), [timm.create_model("resnet10t").state_dict() for _ in range(2)]),
    ):
        save(Path(config["checkpoint"]), states[0], "plain")
        _, artefact = made(config)
        save(Path(config["checkpoint"]), states[1], "plain")
        assert not np.array_equal(fit_artefact(config, [], RGB, BYTE, 0)["checkpoint"], artefact["checkpoint"])
        with pytest.raises(RequestError, match="fresh workspace"):
            build_encoder(config, artefact, RGB, "uint8", "cpu", 1)
