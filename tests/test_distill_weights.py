"""Text-to-image models that others have trained: found, refused, told of the classes, adapted, kept, drawn from."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from curation.distillation.autoencoder import Autoencoder
from curation.distillation.denoiser import Denoiser
from curation.distillation.guidance import draw
from curation.distillation.pretrained import find_weights, load_scheduler
from curation.distillation.settings import DiffusionConfig, DistillConfig, GuidanceConfig
from curation.distillation.training import diffusion_course
from curation.distillation.weights import class_texts, embed, load_autoencoder, load_denoiser
from curation.errors import RequestError
from tests.diffusion_recipes import TOKENS, WIDTH, save_model

torch.set_num_threads(1)  # the models are tiny

CLASSES = ["BareLand", "Pond"]
TEXTS = ["A satellite image of bare land", "A satellite image of pond"]
RGB = ("red", "green", "blue")
GUIDANCE = GuidanceConfig(steps=8)
FULL, LORA = DiffusionConfig(adapt="full"), DiffusionConfig(adapt="lora", rank=3, rate=0.01, warm=0, batch=4, steps=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def noise(n=2):
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(7))


def drawn(denoiser, guidance=GUIDANCE):
    return draw(denoiser, noise(), torch.tensor([0, 1]), None, guidance)


def pipeline(folder):
    """The same files as diffusers loads and samples them."""
    return StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(folder / "vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        None,
        None,
        requires_safety_checker=False,
    )


def load(folder, settings=FULL):
    weights = find_weights(str(folder))
    return load_autoencoder(weights), load_denoiser(weights, TEXTS, settings, seed=0)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# the reference


@pytest.mark.parametrize(
    ("prediction", "unet"),
    [
        ("epsilon", {}),
        ("v_prediction", {"use_linear_projection": True, "attention_head_dim": [2, 4]}),
        ("epsilon", {"use_linear_projection": True, "attention_head_dim": [2, 4], "class_embed_type": "timestep"}),
    ],
)
def test_drawing_is_that_of_diffusers_own_pipeline(tmp_path, prediction, unet):
    """Stable Diffusion 1, 2, and Text2Earth."""
    folder = save_model(tmp_path / "model", prediction, unet)
    weights = find_weights(str(folder))
    autoencoder = load_autoencoder(weights)
    denoiser = load_denoiser(weights, class_texts(weights, CLASSES, DistillConfig()), FULL, seed=0)
    latents = drawn(denoiser)
    reference = pipeline(folder)
    reference.set_progress_bar_config(disable=True)
    if "class_embed_type" in unet:  # no resolution is told
        reference.unet.forward = partial(reference.unet.forward, class_labels=torch.zeros(4, dtype=torch.int64))
    said = {"prompt": TEXTS, "latents": noise(), "num_inference_steps": GUIDANCE.steps, "guidance_scale": 7.5}
    torch.testing.assert_close(latents, reference(**said, output_type="latent").images, rtol=1e-4, atol=1e-4)
    images = (reference(**said, output_type="np").images * 255).transpose(0, 3, 1, 2)
    assert np.abs(autoencoder.decode(latents).numpy() - images).max() < 0.51  # they are rounded here
    assert images.std() > 5  # they show something


def test_latents_are_scaled_as_the_unet_knows_them(folder):
    weights = find_weights(str(folder))
    autoencoder, vae = load_autoencoder(weights), AutoencoderKL.from_pretrained(folder / "vae")
    pixels = torch.arange(2 * 3 * 32 * 32).to(torch.uint8).view(2, 3, 32, 32)
    mean, std = autoencoder.encode(pixels)
    with torch.no_grad():
        found = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    torch.testing.assert_close(mean, found.mean * 0.18215)
    torch.testing.assert_close(std, found.std * 0.18215)
    assert (weights.channels, weights.factor, weights.size) == (autoencoder.channels, autoencoder.factor, 32)


def test_the_schedule_is_the_models_own(copy):
    edit(copy / "scheduler/scheduler_config.json", prediction_type="v_prediction", beta_end=0.02, steps_offset=0)
    scheduler = load_scheduler(find_weights(str(copy)))
    assert scheduler.config.prediction_type == "v_prediction"
    assert not scheduler.config.clip_sample and scheduler.config.steps_offset == 1  # as the pipeline sets them
    np.testing.assert_allclose(scheduler.betas, np.linspace(0.00085**0.5, 0.02**0.5, 1000) ** 2, rtol=1e-5)


# texts


def test_texts_are_embedded_as_the_pipeline_does(folder):
    told, empty = pipeline(folder).encode_prompt(TEXTS, "cpu", 1, True)
    made = embed(find_weights(str(folder)), [*TEXTS, ""])
    assert made.shape == (3, TOKENS, WIDTH)
    torch.testing.assert_close(made, torch.cat([told, empty[:1]]))
    denoiser = load_denoiser(find_weights(str(folder)), TEXTS, FULL, seed=0)
    torch.testing.assert_close(denoiser.texts, made)
    assert denoiser.classes == 2


def test_aggregated_captions_fill_what_the_text_encoder_reads(folder):
    weights, settings = find_weights(str(folder)), DistillConfig(captions="aggregated", template="{}")
    rows = [(str(n), "Pond", f"{word} near a pond") for n, word in enumerate(["green trees", "a road", "two houses"])]
    bare, pond = class_texts(weights, CLASSES, settings, rows)
    assert bare == "bare land" and pond.startswith("pond. ") and "near a pond." in pond
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert len(tokenizer(pond).input_ids) <= TOKENS < len(tokenizer(pond + " a road near a pond" * 3).input_ids)
    with pytest.raises(RequestError, match="no sample has a caption"):
        class_texts(weights, CLASSES, settings, [])


def test_a_template_that_is_too_long_is_refused(folder):
    with pytest.raises(RequestError, match=f"bare land x.*: longer than the {TOKENS} tokens .*: shorten"):
        class_texts(find_weights(str(folder)), CLASSES, DistillConfig(template="{} " + "x " * 80))


# adaption


def latents_of(n=8):
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(n, 4, 16, 16, generator=generator)
    codes = torch.arange(n) % 2
    return mean, torch.full_like(mean, 0.1), codes


def trained(weights, settings, steps=3):
    denoiser = load_denoiser(weights, TEXTS, settings, seed=0)
    mean, std, codes = latents_of()
    course = diffusion_course(denoiser, codes.numpy(), settings, seed=0)
    course.train(lambda rows: (mean[rows], std[rows], codes[rows]), until=steps)
    course.finish()
    return denoiser, course


def test_lora_trains_nothing_but_itself_and_is_kept_as_an_adapter(folder, tmp_path):
    weights = find_weights(str(folder))
    first = load_denoiser(weights, TEXTS, LORA, seed=0)
    torch.testing.assert_close(drawn(first), drawn(load_denoiser(weights, TEXTS, FULL, seed=0)))  # it begins as nothing
    denoiser, course = trained(weights, LORA)
    learnt = {name for name, p in denoiser.named_parameters() if p.requires_grad}
    assert learnt and all("lora_" in name for name in learnt)
    assert {name for name, values in course.state_dict()["weights"].items()} == learnt
    held = sum(len(group["params"]) for group in course.optimiser.param_groups)
    assert held == len(learnt)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    for name, values in denoiser.net.get_base_model().state_dict().items():
        if "lora_" not in name:
            torch.testing.assert_close(values, unet.state_dict()[name.replace(".base_layer", "")], rtol=0, atol=0)
    assert not torch.allclose(drawn(denoiser), drawn(first), atol=1e-3)

    kept = tmp_path / "denoiser"
    kept.mkdir()
    denoiser.save(kept)
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json"} <= {file.name for file in kept.iterdir()}
    assert json.loads((kept / "base.json").read_text()) == {"weights": str(folder), "sha256": weights.digest}
    assert torch.equal(drawn(Denoiser.load(kept)), drawn(denoiser))
    reference = pipeline(folder)
    reference.unet = PeftModel.from_pretrained(reference.unet, kept)  # anybody's peft reads it
    said = {"noisy": noise(), "times": torch.tensor([5, 900])}
    theirs = reference.unet(*said.values(), encoder_hidden_states=denoiser.texts[:2]).sample
    torch.testing.assert_close(denoiser(*said.values(), torch.tensor([0, 1])), theirs)


def test_the_same_seed_gives_the_same_adapter(folder):
    weights = find_weights(str(folder))
    state = torch.random.get_rng_state()
    one, two, other = (load_denoiser(weights, TEXTS, LORA, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_adapter_on_other_weights_is_refused(copy, tmp_path):
    kept = tmp_path / "denoiser"
    kept.mkdir()
    load_denoiser(find_weights(str(copy)), TEXTS, LORA, seed=0).save(kept)
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_in.bias"] += 1
    save_file(state, path, {"format": "pt"})
    with pytest.raises(RequestError, match="is not what this workspace's model was adapted from"):
        Denoiser.load(kept)
    shutil.rmtree(copy)
    with pytest.raises(RequestError, match="no such local folder"):
        Denoiser.load(kept)


def test_all_of_the_unet_can_be_trained_and_kept(folder, tmp_path):
    denoiser, course = trained(find_weights(str(folder)), DiffusionConfig(adapt="full", rate=0.01, warm=0, batch=4), 2)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert len(course.state_dict()["weights"]) == len(list(unet.parameters()))
    kept = tmp_path / "denoiser"
    kept.mkdir()
    denoiser.save(kept)
    assert torch.equal(drawn(Denoiser.load(kept)), drawn(denoiser))
    first = load_denoiser(find_weights(str(folder)), TEXTS, FULL, seed=0)
    assert not torch.allclose(drawn(denoiser), drawn(first), atol=0.1)


def test_the_unet_learns_what_its_texts_tell_apart(tmp_path):
    """Latents of one class are 1, of the other -1; the same noise then becomes the one or the other."""
    weights = find_weights(str(save_model(tmp_path / "model", "v_prediction")))
    settings = DiffusionConfig(adapt="full", rate=3e-3, warm=0, batch=8, steps=40)
    denoiser = load_denoiser(weights, ["7 " * 70, "z " * 70], settings, seed=0)
    codes = torch.arange(8) % 2
    mean = (2.0 * codes - 1)[:, None, None, None].expand(8, 4, 16, 16)
    course = diffusion_course(denoiser, codes.numpy(), settings, seed=0)
    course.train(lambda rows: (mean[rows], torch.full_like(mean[rows], 0.1), codes[rows]))
    course.finish()
    alike = noise(1).expand(2, 4, 16, 16)
    made = draw(denoiser, alike, torch.tensor([0, 1]), None, GuidanceConfig(steps=8, classes=1.0)).mean((1, 2, 3))
    assert made[0] < -0.4 and made[1] > 0.4


def test_an_autoencoder_is_kept(folder, tmp_path):
    autoencoder, latents = load_autoencoder(find_weights(str(folder))), noise()
    kept = tmp_path / "autoencoder"
    kept.mkdir()
    autoencoder.save(kept)
    assert torch.equal(Autoencoder.load(kept).decode(latents), autoencoder.decode(latents))


# what folders may look like


def test_weights_of_fewer_bits_become_float32(copy):
    for path in copy.glob("*/*.safetensors"):
        half = torch.bfloat16 if path.parent.name == "unet" else torch.float16
        save_file({name: value.to(half) for name, value in load_file(path).items()}, path, {"format": "pt"})
    edit(copy / "text_encoder/config.json", dtype="float16")
    autoencoder, denoiser = load(copy, LORA)
    assert {p.dtype for model in (autoencoder, denoiser) for p in model.parameters()} == {torch.float32}
    assert drawn(denoiser).isfinite().all()


def test_a_text_encoder_of_older_names_is_read(folder, copy):
    path = copy / "text_encoder/model.safetensors"
    state = {f"text_model.{name}": value for name, value in load_file(path).items()}
    save_file({**state, "text_model.embeddings.position_ids": torch.arange(TOKENS)[None]}, path, {"format": "pt"})
    assert torch.equal(embed(find_weights(str(copy)), TEXTS), embed(find_weights(str(folder)), TEXTS))


def test_sharded_weights_are_read(folder, copy):
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(copy / "unet", max_shard_size="100KB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 1
    one, other = (drawn(load_denoiser(find_weights(str(path)), TEXTS, FULL, 0)) for path in (folder, copy))
    assert torch.equal(one, other)
    assert find_weights(str(copy)).digest != find_weights(str(folder)).digest
    next((copy / "unet").glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(RequestError, match="unet/ does not load"):
        load_denoiser(find_weights(str(copy)), TEXTS, FULL, 0)


def test_what_is_not_read_does_not_count(folder, copy):
    (copy / "README.md").write_text("read me")
    (copy / "safety_checker").mkdir()
    (copy / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    assert find_weights(str(copy)).digest == find_weights(copy.as_uri()).digest == find_weights(str(folder)).digest


# the hub


def test_a_tag_is_fetched_from_the_hub(folder, tmp_path, monkeypatch):
    """As it lies in the hub's cache, when the hub cannot be reached."""
    from huggingface_hub import constants

    cache = tmp_path / "models--owner--earth"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    weights = find_weights("owner/earth")
    assert weights.name == "owner/earth" and weights.digest == find_weights(str(folder)).digest
    with pytest.raises(RequestError, match="weights=owner/mars: .*cannot be fetched from the hub.*give a folder"):
        find_weights("owner/mars")


# refusals


def without(*parts):
    return lambda folder: [shutil.rmtree(folder / part) for part in parts]


def edited(path, **changes):
    return lambda folder: edit(folder / path, **changes)


def pickled(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def a_dit(folder):
    (folder / "unet").rename(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))


def cut(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lacking(part, file, name):
    def change(folder):
        path = folder / part / f"{file}.safetensors"
        save_file({key: value for key, value in load_file(path).items() if key != name}, path, {"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("vae"), "has no vae/config.json: give a folder"),
        (without("text_encoder"), "has no text_encoder/config.json"),
        (without("tokenizer"), "has no tokenizer/ with vocab.json"),
        (without("scheduler"), "has no scheduler/scheduler_config.json"),
        (a_dit, r"has no unet/config.json \(it is a DiTPipeline\): give a folder"),
        (edited("unet/config.json", _class_name="SD3Transformer2DModel"), "unet/ is a SD3Transformer2DModel"),
        (edited("text_encoder/config.json", architectures=["T5EncoderModel"]), "is a T5EncoderModel, and no CLIP"),
        (pickled, r"unet/ has no diffusion_pytorch_model.safetensors \(but .*\.bin\); pickles .* not opened: save it"),
        (edited("unet/config.json", in_channels=9), "maps 9 channels to 4, and its vae's latents have 4: give a plain"),
        (edited("vae/config.json", latent_channels=16), "maps 4 channels to 4, and its vae's latents have 16"),
        (edited("unet/config.json", cross_attention_dim=24), "texts of width 24, and its text_encoder writes 16"),
        (edited("unet/config.json", addition_embed_type="text_time"), "also wants addition_embed_type"),
        (edited("unet/config.json", class_embed_type="projection"), "also wants class_embed_type"),
        (edited("unet/config.json", num_class_embeds=1000), "also wants num_class_embeds"),
        (edited("vae/config.json", in_channels=13), "its vae is for 13 bands: give one for 3"),
        (edited("scheduler/scheduler_config.json", prediction_type="sample"), "predicts sample: give a model of eps"),
        (lambda f: (f / "vae/config.json").write_text("{"), "vae/config.json cannot be read"),
        (lambda f: (f / "vae/config.json").write_text("[1]"), "vae/config.json cannot be read"),
        (lambda f: (f / "scheduler/scheduler_config.json").write_text("{}"), "does not say its beta_schedule"),
        (cut, "vae/ does not load"),
        (lacking("unet", "diffusion_pytorch_model", "conv_out.weight"), r"unet/ lacks 1 of its tensors \(conv_out"),
        (lacking("text_encoder", "model", "final_layer_norm.bias"), r"text_encoder/ lacks 1 of its tensors"),
        (edited("vae/config.json", block_out_channels=[8, 8]), "vae/ does not load"),
        (lambda f: (f / "tokenizer/vocab.json").write_text("[1]"), "tokenizer/ does not load"),
        (edited("text_encoder/config.json", vocab_size=5), "of which the text_encoder knows 5"),
    ],
)
def test_a_folder_of_another_form_is_refused_in_one_line(copy, change, said):
    change(copy)
    with pytest.raises(RequestError, match=said) as refused:
        load(copy)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("distill.weights=")


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(RequestError, match="model.ckpt is a file: give a folder .*from_single_file"):
        find_weights(str(tmp_path / "model.ckpt"))
    with pytest.raises(RequestError, match="no such local folder, and no hub tag"):
        find_weights(str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match=r"s3://bucket/model: no such local folder") as refused:
        find_weights("s3://me:secret@bucket/model")
    assert "secret" not in str(refused.value)


def test_bands_and_size_must_be_theirs(folder, copy):
    weights = find_weights(str(folder))
    assert weights.fit(RGB, None) == 32 and weights.fit(RGB, 48) == 48
    with pytest.raises(RequestError, match=r"is for 3 bands, and the archive has 4 \(.*nir\): choose archive.bands"):
        weights.fit((*RGB, "nir"), None)
    with pytest.raises(RequestError, match="distill.size=33: .* makes multiples of 2, such as 32"):
        weights.fit(RGB, 33)
    edit(copy / "unet/config.json", sample_size=None)
    with pytest.raises(RequestError, match="does not say its size: give distill.size"):
        find_weights(str(copy)).fit(RGB, None)
