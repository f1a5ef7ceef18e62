"""Named models of timm and transformers, small: read with equal outputs, and exported with equal outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.vit.test_vit_variants import apart, exported, run
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.families import clip, deit, dinov2, dinov3, open_clip, siglip, timm_eva, timm_vit
from vitedge.vit.checkpoint.families.hugging_face import Settings
from vitedge.vit.checkpoint.families.tensors import Read
from vitedge.vit.checkpoint.save import build_model

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
# timm's name -> what else its constructor is told.
TIMM = {
    "vit_base_patch16_224": {},
    "vit_base_patch8_224": {"img_size": (32, 48), "in_chans": 1},
    "vit_medium_patch16_gap_240": {},
    "vit_medium_patch16_reg4_gap_256": {},
    "vit_so150m2_patch16_reg1_gap_256": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_base_patch32_clip_224": {},
    "vit_base_patch32_clip_quickgelu_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_small_patch14_dinov2": {"img_size": 56},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "vit_giant_patch14_reg4_dinov2": {"img_size": 56},
    "vit_small_patch16_dinov3": {"global_pool": "token"},
    "vit_small_plus_patch16_dinov3": {"img_size": (32, 64)},
    "eva02_tiny_patch14_224": {"img_size": 56},
    "vit_tiny_r_s16_p8_224": {},
    "vit_small_r26_s32_224": {"img_size": (64, 96)},
    "vit_small_resnet26d_224": {},
    "vit_base_mci_224": {"embed_dim": 768, "num_heads": 12},
}
KW = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
MLP = {**KW, "intermediate_size": 96}
TEXT = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 64}
TEXT |= {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
BOTH = {"vision_config": MLP, "text_config": TEXT}
# transformers' class -> (its configuration's class, arguments, the reader, the output to compare with).
Output = Callable[[object], torch.Tensor]
HUGGING_FACE: dict[str, tuple[str, dict, object, str]] = {
    "ViTModel": ("ViTConfig", MLP, deit, "last_hidden_state"),
    "ViTForImageClassification": ("ViTConfig", {**MLP, "hidden_act": "gelu_new"}, deit, "logits"),
    "DeiTModel": ("DeiTConfig", MLP, deit, "last_hidden_state"),
    "DeiTForImageClassification": ("DeiTConfig", MLP, deit, "logits"),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", MLP, deit, "logits"),
    "CLIPVisionModel": ("CLIPVisionConfig", MLP, clip, "pooler_output"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {**MLP, "hidden_act": "gelu"}, clip, "image_embeds"),
    "CLIPModel": ("CLIPConfig", BOTH, clip, "image_embeds"),
    "SiglipVisionModel": ("SiglipVisionConfig", MLP, siglip, "pooler_output"),
    "SiglipModel": ("SiglipConfig", BOTH, siglip, "image_embeds"),
    "SiglipForImageClassification": ("SiglipConfig", BOTH, siglip, "logits"),
    "Dinov2Model": ("Dinov2Config", {**KW, "use_swiglu_ffn": True}, dinov2, "pooler_output"),
    "Dinov2ForImageClassification": ("Dinov2Config", KW, dinov2, "logits"),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", KW, dinov2, "pooler_output"),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", KW, dinov2, "logits"),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**MLP, "num_register_tokens": 4}, dinov3, "pooler_output"),
    "DINOv3ViTModel gated": ("DINOv3ViTConfig", {**MLP, **GATED}, dinov3, "pooler_output"),
}


# transformers' name -> OpenAI's.
RENAMED = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "encoder.layers": "transformer.resblocks"}
RENAMED |= {"layer_norm": "ln_", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def filled(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights in which every tensor matters, and one channel of each vector is far out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                is_token = any(word in name for word in ("token", "embed", "latent", "probe"))
                p.normal_(0, 0.3 if is_token else min(0.3, p[0].numel() ** -0.5), generator=generator)
            elif "gamma" in name or "lambda" in name:
                p.uniform_(0.1, 0.8, generator=generator)
            else:
                p.normal_(1.0 if name.endswith("weight") else 0.0, 0.2, generator=generator)
            if p.ndim == 1 and len(p) > 5:
                p[3] *= 6
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the statistics of these images, so that deep layers stay alive
        if norms:
            size = model.patch_embed.img_size  # type: ignore[union-attr]
            model.train()(torch.rand(8, 3, *size, generator=generator) * 2 - 1)  # type: ignore[misc]
    return model.eval()


def images(read: Read) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, read.config.channels, *read.config.image_size)
    return torch.randint(0, 256, shape, generator=generator) / 127.5 - 1


def check(read: Read, theirs: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Ours and ONNX Runtime's outputs equal the library's, to 1e-5 of their range."""
    model, x = build_model(read.config, read.state), images(read)
    with torch.no_grad():
        expected, found = theirs(x), model(x)
    assert found.shape == expected.shape
    assert apart(expected, found) < 1e-5
    assert apart(expected, run(exported(model), x)) < 1e-5
    # What is compared depends on the image.
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = filled(timm.create_model(name, pretrained=False, **{"img_size": 64, **SMALL, **TIMM[name]}))
    reader = timm_eva if type(model).__name__ == "Eva" else timm_vit
    with torch.device("meta"):
        described = timm.create_model(name, pretrained=False, **{"img_size": 64, **SMALL, **TIMM[name]})
    check(reader.read(model.state_dict(), described), model)


@pytest.mark.parametrize("arguments", [{"qk_norm": True}, {"global_pool": "", "num_classes": 0}, {"qkv_bias": False}])
def test_timm_arguments(arguments: dict) -> None:
    timm = pytest.importorskip("timm")
    model = filled(timm.create_model("vit_base_patch16_224", img_size=64, **SMALL, **arguments))
    start = 1 if arguments.get("global_pool") == "" else 0
    check(timm_vit.read(model.state_dict(), model), lambda x: model(x)[:, start:])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("eva02_base_patch14_224", "LayerNorm inside"),
        ("vit_pe_core_tiny_patch16_384", "AttentionRope"),
        ("vit_base_patch16_rpn_224", "ResPostBlock"),
        ("vit_small_patch16_36x1_224", ""),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
    ],
)
def test_what_the_architecture_has_not_is_refused_by_name(name: str, word: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, depth=1)
    state = {k: torch.zeros(v.shape) for k, v in model.state_dict().items()}
    reader = timm_eva if type(model).__name__ == "Eva" else timm_vit
    if not word:
        assert reader.read(state, model).config.width == 384
        return
    with pytest.raises(VitedgeError, match=word):
        reader.read(state, model)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    kind, arguments, reader, output = HUGGING_FACE[name]
    model = filled(getattr(transformers, name.split()[0])(getattr(transformers, kind)(**arguments)))
    model.save_pretrained(tmp_path)
    settings = Settings.model_validate(json.loads((tmp_path / "config.json").read_text()))
    text = {"input_ids": torch.tensor([[1, 3, 2]])} if "vision_config" in arguments else {}

    def theirs(x: torch.Tensor) -> torch.Tensor:
        found = model(pixel_values=x, **text)[output]
        return found[:, 0] if output == "last_hidden_state" else found

    check(reader.read(load_file(tmp_path / "model.safetensors"), settings), theirs)  # type: ignore[attr-defined]


def test_open_clip_has_the_names_of_the_paper() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**MLP, projection_dim=20)
    model = filled(transformers.CLIPVisionModelWithProjection(config))
    state, theirs = model.state_dict(), {}
    simple = {
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    }
    for name, tensor in state.items():
        new = simple.get(name, name.removeprefix("vision_model."))
        for old, part in RENAMED.items():
            new = new.replace(old, part)
        theirs[f"visual.{new}"] = tensor
    theirs["visual.proj"] = theirs.pop("visual.visual_projection.weight").T
    for i in range(2):
        block = f"visual.transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            parts = [theirs.pop(f"{block}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            theirs[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    theirs.pop("visual.embeddings.position_ids", None)
    theirs |= {"logit_scale": torch.ones(()), "token_embedding.weight": torch.zeros(3, 4)}
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
    settings = open_clip.Settings.model_validate({"vision_cfg": vision, "quick_gelu": True, "embed_dim": 20})
    read = open_clip.read(theirs, settings)
    check(read, lambda x: torch.nn.functional.normalize(model(x).image_embeds, dim=-1))


def test_a_tensor_that_is_not_known_is_named() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_base_patch16_224", img_size=64, **SMALL)
    state = dict(model.state_dict())
    state["blocks.0.adapter.weight"] = torch.zeros(3)
    state.pop("blocks.1.norm2.bias")
    with pytest.raises(VitedgeError, match=r"RMSNorm|adapter"):
        timm_vit.read(state, model)
    state["blocks.1.norm2.bias"] = torch.zeros(48)
    with pytest.raises(VitedgeError, match=r"1 are not known: blocks\.0\.adapter\.weight"):
        timm_vit.read(state, model)
