"""Generators of synthetic images: prompts, the worker in another interpreter, and diffusers."""

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from face2scene.data.building.prompts import PACKS, Prompts, subjects
from face2scene.data.generators.base import GenerationRequest, GeneratorError, JobFailed
from face2scene.data.generators.infiniteyou import LICENCES, InfiniteYou

# Prompts


def test_prompt_pack_adds_phrases(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"weight": 1000, "places": ["on the moon"]}))
    mine = Prompts([tmp_path])
    places = [mine(n).text.split(".")[0] for n in range(30)]
    assert sum("on the moon" in place for place in places) > 25
    assert Prompts([tmp_path / "mine.yaml"]).listing() == mine.listing() != Prompts().listing()
    shutil.copytree(PACKS, tmp_path / "copy")
    alone = Prompts([tmp_path / "copy"], own=False)
    assert [alone(n) for n in range(20)] == [Prompts()(n) for n in range(20)]


def test_prompt_packs_are_mixed():
    prompts, texts = Prompts(), []
    for number in range(300):
        texts.append(prompts(number).text)
    town = yaml.safe_load((PACKS / "town.yaml").read_text())
    nature = yaml.safe_load((PACKS / "nature.yaml").read_text())
    mixed = [t for t in texts if any(p in t for p in town["places"]) and any(o in t for o in nature["objects"])]
    assert len(mixed) > 10  # a place of one pack before an object of another
    assert max(len(text.split()) for text in texts) < 110


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        ({"plaecs": ["x"]}, "unknown lists"),
        ({"weight": 0}, "above 0"),
        ({"places": [1]}, "list of phrases"),
        (["x"], "not a mapping"),
    ],
)
def test_bad_prompt_pack_is_refused(tmp_path, pack, words):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(pack))
    with pytest.raises(ValueError, match=f"mine.yaml.*{words}"):
        Prompts([tmp_path])(0)
    with pytest.raises(FileNotFoundError, match="no scene pack"):
        Prompts([tmp_path / "gone"])(0)


def test_gender_map_is_validated(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"00003": "man", "00005": "woman"}')
    assert subjects(path) == {"00003": "man", "00005": "woman"} and subjects(None) == {}
    path.write_text("00012: man\n")
    with pytest.raises(ValueError, match="quote the identities"):
        subjects(path)
    path.write_text('{"00003": "cat"}')
    with pytest.raises(ValueError, match="cat"):
        subjects(path)


# The worker in another interpreter. The pipeline is put in place of InfiniteYou's; process, pipe and protocol are real.

FAKE_PIPELINE = """
import os, time
from pathlib import Path
from PIL import Image

print("the libraries print what they like")

class InfUFluxPipeline:
    def __init__(self, base_model_path, infu_model_path, insightface_root_path, image_proj_num_tokens,
                 infu_flux_version, model_version, quantize_8bit, cpu_offload):
        for path in (base_model_path, infu_model_path, insightface_root_path):
            assert Path(path).is_dir(), path
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        if os.environ.get("FAKE_START") == "exit":
            print("cannot load the base model")
            exit(1)
        self.loras = []

    def load_loras(self, loras):
        self.loras = loras

    def __call__(self, id_image, prompt, seed, width, height, guidance_scale, num_steps, infusenet_conditioning_scale,
                 infusenet_guidance_start, infusenet_guidance_end, cpu_offload):
        print("drawing", prompt)
        assert id_image.mode == "RGB" and self.loras[0][1:] == ["anti_blur", 3.0]
        marker = Path(os.environ["FAKE_STATE"]) / prompt.split()[-1]
        if "crash" in prompt and (not marker.exists() or "always" in prompt):
            marker.touch()
            print("Killed: out of memory", flush=True)
            os._exit(137)
        if "hang" in prompt and not marker.exists():
            marker.touch()
            time.sleep(600)
        if "faceless" in prompt:
            raise ValueError("No face detected in the input ID image")
        return Image.new("RGB", (width, height), (seed % 256, guidance_scale != 3.5, num_steps))
"""


@pytest.fixture
def infiniteyou(tmp_path, request):
    repository, models, base = tmp_path / "code", tmp_path / "models", tmp_path / "flux"
    (repository / "pipelines").mkdir(parents=True)
    (repository / "pipelines/pipeline_infu_flux.py").write_text(FAKE_PIPELINE)
    (models / "infu_flux_v1.0/sim_stage1/InfuseNetModel").mkdir(parents=True)
    (models / "infu_flux_v1.0/sim_stage1/image_proj_model.bin").touch()
    (models / "supports/insightface").mkdir(parents=True)
    (models / "supports/optional_loras").mkdir()
    (models / "supports/optional_loras/flux_anti_blur_lora.safetensors").touch()
    base.mkdir()
    (base / "model_index.json").touch()
    Image.new("RGBA", (20, 20), "red").save(tmp_path / "photo.png")
    made = []

    def make(**changes) -> InfiniteYou:
        options = {
            **{"python": sys.executable, "repository": repository, "model_dir": models, "base_model": base},
            **{"accept_licences": list(LICENCES), "width": 64, "height": 72, "log": tmp_path / "worker.log"},
            "environment": {"FAKE_STATE": str(tmp_path)} | changes.pop("environment", {}),
        }
        made.append(InfiniteYou(**options | changes))
        return made[-1]

    yield make
    for generator in made:
        generator.close()


def make_job(tmp_path: Path, prompt="a scene", seed=7) -> GenerationRequest:
    return GenerationRequest(0, 0, seed=seed, prompt=prompt, reference=tmp_path / "photo.png")


def test_worker_serves_many_jobs(infiniteyou, tmp_path):
    generator = infiniteyou()
    images = [generator.draw(make_job(tmp_path, seed=seed)) for seed in (7, 8, 7)]
    assert images[0].shape == (72, 64, 3) and images[0].dtype == np.uint8
    assert [tuple(image[0, 0]) for image in images] == [(7, 0, 30), (8, 0, 30), (7, 0, 30)]
    assert generator.starts == 1
    assert "the libraries print what they like" in (tmp_path / "worker.log").read_text()


def test_dead_worker_is_replaced(infiniteyou, tmp_path):
    generator = infiniteyou()
    assert generator.draw(make_job(tmp_path, "crash once", seed=9))[0, 0, 0] == 9
    assert generator.starts == 2
    assert generator.draw(make_job(tmp_path, seed=3))[0, 0, 0] == 3
    os.kill(generator._worker.process.pid, 9)  # between two jobs
    assert generator.draw(make_job(tmp_path, seed=4))[0, 0, 0] == 4
    assert generator.starts == 3


def test_crashing_job_fails_alone(infiniteyou, tmp_path):
    generator = infiniteyou(retries=1)
    with pytest.raises(JobFailed, match=r"2 workers in a row.*exit code 137.*out of memory"):
        generator.draw(make_job(tmp_path, "crash always"))
    assert generator.draw(make_job(tmp_path, seed=3))[0, 0, 0] == 3


def test_hanging_worker_is_replaced(infiniteyou, tmp_path):
    generator = infiniteyou(job_timeout_s=20)
    generator.draw(make_job(tmp_path))  # started: what follows waits for the job alone
    generator.job_timeout_s = 2
    start = time.monotonic()
    assert generator.draw(make_job(tmp_path, "hang once", seed=5))[0, 0, 0] == 5
    assert generator.starts == 2 and time.monotonic() - start < 60


def test_no_face_fails_job_not_worker(infiniteyou, tmp_path):
    generator = infiniteyou()
    with pytest.raises(JobFailed, match="ValueError: No face detected"):
        generator.draw(make_job(tmp_path, "faceless"))
    generator.draw(make_job(tmp_path))
    assert generator.starts == 1


def test_worker_start_failure_is_reported(infiniteyou, tmp_path):
    with pytest.raises(GeneratorError, match=r"did not start: SystemExit: 1.*last lines.*cannot load the base model"):
        infiniteyou(environment={"FAKE_START": "exit"}).draw(make_job(tmp_path))
    broken = infiniteyou()
    (broken.repository / "pipelines/pipeline_infu_flux.py").write_text("import no_such_package")
    with pytest.raises(GeneratorError, match="no_such_package"):
        broken.draw(make_job(tmp_path))


def test_paths_and_licences_checked_first(infiniteyou, tmp_path):
    generator = infiniteyou(base_model=tmp_path / "nowhere", python=tmp_path / "python")
    with pytest.raises(GeneratorError, match=r"(?s)generator\.python: there is no.*generator\.base_model: there is no"):
        generator.check()
    with pytest.raises(GeneratorError, match=r"CC BY-NC 4\.0.*accept_licences=\[infiniteyou,flux\.1-dev,insightface\]"):
        infiniteyou(accept_licences=["insightface"]).draw(make_job(tmp_path))
    with pytest.raises(GeneratorError, match="sim_stage1 or aes_stage2"):
        infiniteyou(version="stage3")
    assert generator.starts == 0


def test_worker_exits_with_its_parent(infiniteyou, tmp_path):
    generator = infiniteyou()
    generator.draw(make_job(tmp_path))
    process = generator._worker.process
    process.stdin.close()  # as the system does for a killed builder
    assert process.wait(timeout=20) == 0


def test_each_rank_gets_its_own_gpu(infiniteyou, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert infiniteyou()._environment()["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert infiniteyou()._environment()["CUDA_VISIBLE_DEVICES"] == "1"


# diffusers


def tiny_stable_diffusion(folder: Path) -> Path:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    from face2scene.common.reproducibility import REPOSITORY

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "checkpoints/tiny/base/tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=16, **small, **ends))
    unet = UNet2DConditionModel(
        **{"block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8, "cross_attention_dim": 16},
        **{"norm_num_groups": 4, "attention_head_dim": 2},
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        **{"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4},
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    StableDiffusionPipeline(
        vae, text, tokenizer, unet, DDIMScheduler(), safety_checker=None, feature_extractor=None
    ).save_pretrained(folder)
    return folder


def tiny_adapter(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(1)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=224, patch_size=56, projection_dim=16, **small))
    encoder.save_pretrained(folder / "image_encoder")
    CLIPImageProcessor().save_pretrained(folder / "image_encoder")
    weights = {
        "image_proj.proj.weight": torch.randn(4 * 16, 16),
        "image_proj.proj.bias": torch.zeros(4 * 16),
        "image_proj.norm.weight": torch.ones(16),
        "image_proj.norm.bias": torch.zeros(16),
    }
    for number in (1, 3, 5, 7, 9):  # diffusers counts self-attentions too; here all are 16 wide
        for part in ("k", "v"):
            weights[f"ip_adapter.{number}.to_{part}_ip.weight"] = torch.randn(16, 16)
    save_file(weights, folder / "adapter.safetensors")
    return folder


def test_ip_adapter_pipeline_uses_reference(tmp_path):
    from face2scene.data.generators.ip_adapter import IPAdapterPipeline

    generator = IPAdapterPipeline(
        *(tiny_stable_diffusion(tmp_path / "base"), tiny_adapter(tmp_path / "adapter")),
        **{"weight_name": "adapter.safetensors", "width": 32, "height": 48, "steps": 2, "scale": 1.0, "device": "cpu"},
    )
    generator.check()
    for name, colour in (("photo", "red"), ("other", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    image = generator.draw(make_job(tmp_path))
    assert image.shape == (48, 32, 3) and image.dtype == np.uint8 and image.std() > 0
    assert (image == generator.draw(make_job(tmp_path))).all()
    assert (image != generator.draw(make_job(tmp_path, seed=8))).any()
    assert (image != generator.draw(make_job(tmp_path, prompt="another scene"))).any()
    other = GenerationRequest(0, 0, seed=7, prompt="a scene", reference=tmp_path / "other.png")
    assert (image != generator.draw(other)).any()  # the face counts
    with pytest.raises(GeneratorError, match="there is no"):
        IPAdapterPipeline(tmp_path / "gone", tmp_path / "adapter", weight_name="x").check()
    with pytest.raises(GeneratorError, match="does not load"):
        IPAdapterPipeline(tmp_path / "base", tmp_path / "adapter", weight_name="gone.safetensors").draw(
            make_job(tmp_path)
        )
