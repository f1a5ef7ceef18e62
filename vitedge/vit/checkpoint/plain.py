"""What tensors alone are not read as, each by what it is: the one list of refusals.

Without a description beside it (see `families.find`), a ViT is plain: square patches with learned positions, pre-norm
blocks (LayerNorm, attention, erf GELU), one LayerNorm and one Linear on [CLS].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.adapter import MERGE
from vitedge.vit.checkpoint.kinds import SAVE
from vitedge.vit.checkpoint.layout import BEFORE_HEAD, Layout

PLAIN = (
    "Read from tensors alone is the plain ViT: pre-norm blocks with LayerNorm and erf GELU, a [CLS] token and one "
    "linear head."
)
FAMILY = (
    "DeiT, CLIP, SigLIP, DINOv2, DINOv3, Swin, PVT v2, EVA-02 and timm's hybrids are read with the config.json of "
    "timm, transformers or open_clip beside the weights, or with timm's name of the model: --architecture NAME."
)

NO_HEAD = "no classification head (a backbone alone)"

# What people call a classifier of their own.
HEADS = ("fc", "classifier", "linear", "head", "heads", "last_linear", "out", "output", "cls_head", "mlp_head")

# How configurations spell the activations of an MLP.
ERF_GELU = {"gelu", "gelu_erf", "gelu_python"}
_ACTIVATIONS = {
    **dict.fromkeys(("gelu_tanh", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "GELU in its tanh form"),
    "quick_gelu": "GELU in its sigmoid form (quick_gelu)",
    "relu": "ReLU",
    **dict.fromkeys(("silu", "swish"), "SiLU"),
}
_POOLS = {
    "avg": "the mean of all tokens instead of [CLS] (global_pool 'avg')",
    "map": "attention pooling instead of [CLS] (global_pool 'map')",
    "": "no pooling (global_pool '')",
}
# Pattern of a name -> what such a checkpoint is, and what to do; whatever its layout.
_WRAPPED = (
    (
        r"lora_[AB]\.|lora_embedding|base_layer\.|modules_to_save\.",
        "holds LoRA matrices that are not merged",
        MERGE,
    ),
    (
        r"(?:^|\.)parametrizations\.",
        "holds parametrised weights (weight or spectral norm)",
        "Call torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') on each, and save again.",
    ),
    (r"weight_[gv]$", "holds weights under weight norm", "Call torch.nn.utils.remove_weight_norm, and save again."),
    (
        r"(?:^|[._])flat_param",
        "holds FSDP's flattened parameters",
        "Save under FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT).",
    ),
    (
        r"(?:\.SCB|absmax|quant_state|qweight|qzeros|_packed_params|zero_point|fake_quant|_amax|activation_post_process)",
        "holds a quantised model",
        "Give the float model that it was made from: vitedge quantises it.",
    ),
)
_FOREIGN = (
    (r"(?:^|\.)(?:deit|cls_classifier|distillation_classifier)\b", "Hugging Face's DeiT, with a distillation token"),
    (r"(?:^|\.)dinov[23]", "DINOv2 or DINOv3"),
    (r"relative_position_(?:bias|index)|(?:^|\.)(?:swin|beit)", "Swin or BEiT, with relative positions"),
    (r"vision_model\.|visual\.|logit_scale", "the image tower of CLIP or SigLIP"),
    (r"to_qkv|to_patch_embedding|patch_to_embedding", "vit-pytorch's (lucidrains) ViT"),
    (
        r"self_attn\.in_proj_weight|linear1\.weight",
        "a ViT over torch.nn.TransformerEncoder, whose tensors don't tell pre-norm from post-norm, nor ReLU from GELU",
    ),
    (r"(?:^|\.)layer1\.0\.conv1|features\.\d+\.|(?:^|\.)conv1\.weight", "a convolutional network"),
    (r"(?:^|\.)embeddings?\.patch_embeddings", "a ViT under names of its own, or a backbone without its head"),
)
_ABSENT = {
    "head": NO_HEAD,
    "class_token": "no [CLS] token, so it pools otherwise",
    "pos_embedding": "no learned position embedding",
    "norm": "no LayerNorm after the last block",
}


def refuse(what: str, meaning: str) -> VitedgeError:
    """The error for a model of another kind: it has `meaning`, which the plain ViT has not."""
    if BEFORE_HEAD in meaning:
        return VitedgeError(
            f"{what} has {meaning}.",
            "Dropout does nothing there, an activation would change every logit.",
            "Where it is dropout alone, save the Linear as the head itself: model.head = model.head[-1] for timm, "
            "model.heads = model.heads[-1] for torchvision, model.classifier = model.classifier[-1] for transformers.",
        )
    return VitedgeError(f"{what} has {meaning}.", PLAIN, FAMILY)


def pooled(pool: str) -> str:
    """What timm's `global_pool` means, in words."""
    return _POOLS.get(pool, f"global_pool {pool!r}")


def activated(name: str) -> str:
    """What a configuration's name of an activation means, in words."""
    return _ACTIVATIONS.get(name.lower(), repr(name))


def refuse_by_name(what: str, meaning: str, why: str) -> VitedgeError:
    """The error for a model that is read by timm's name of it alone, where that name does not fit."""
    return VitedgeError(
        f"{what} has {meaning}.",
        f"Such a model is read by timm's name of it and by what timm's constructor was told: {why}.",
        "Write these into config.json: architecture, and model_args with embed_dim, depth, num_heads and img_size "
        "where they are not that name's.",
    )


def headless(what: str, head: str, tensors: Iterable[str]) -> VitedgeError:
    """The error for a ViT whose head is the identity, or stands under a name that is not the library's."""
    names = set(tensors)
    linears = [n for n in HEADS if {f"{n}.weight", f"{n}.bias"} <= names]
    if not linears:
        return VitedgeError(
            f"{what} has {NO_HEAD}: there is no '{head}'.",
            "Its output is an embedding, not classes.",
            "For the embedding give --output embedding (of every patch: --output patch-tokens). For classes give the "
            "checkpoint that was fine-tuned, with its head in it.",
        )
    return VitedgeError(
        f"{what} has no '{head}', but a layer '{linears[0]}' of another name.",
        "Tensors can't tell what lies between it and the ViT (an activation, another pooling).",
        f"Where it is the classifier and reads the ViT's output as it is, save it under the name of the head: "
        f"state['{head}.weight'], state['{head}.bias'] = state.pop('{linears[0]}.weight'), "
        f"state.pop('{linears[0]}.bias'); torch.save(state, 'model.pth').",
    )


def check_described(
    where: str, *, hidden_act: str | None = None, pool: str | None = None, image: tuple[int, int] | None = None
) -> None:
    """Raises VitedgeError for what a model's own description says and the plain ViT is not."""
    if hidden_act is not None and hidden_act.lower() not in ERF_GELU:
        raise refuse(f"By {where} the model", f"{activated(hidden_act)} in its MLPs")
    if pool not in (None, "token"):
        raise refuse_by_name(f"By {where} the model", pooled(pool), "there is no architecture")
    if image is not None and image[0] != image[1]:
        raise refuse(f"By {where} the model", f"oblong images of {image[0]} x {image[1]} pixels")


def check_wrapped(names: Iterable[str]) -> None:
    """Raises VitedgeError for adapters, parametrisations, flattened or quantised weights."""
    for name in names:
        for pattern, what, todo in _WRAPPED:
            if re.search(pattern, name):
                raise VitedgeError(f"The checkpoint {what} ('{name}').", "", todo)


def check_refused(layout: Layout, names: Iterable[str]) -> None:
    """Raises VitedgeError that names a tensor which only another kind of model has."""
    for key in names:
        for pattern, meaning in layout.refused.items():
            if re.search(pattern, key):
                raise refuse(f"This {layout.name} checkpoint", f"{meaning} ('{key}')")


def check_names(layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    """Raises VitedgeError that names a tensor which only another kind of model has, or what a plain one has not."""
    check_refused(layout, tensors)
    for ours, meaning in _ABSENT.items():
        name = layout.stem[ours]
        if not any(key == name or key.startswith(name + ".") for key in tensors):
            if ours == "head":
                raise headless(f"This {layout.name} checkpoint", name, tensors)
            raise refuse(f"This {layout.name} checkpoint", f"{meaning} (there is no '{name}')")
    norms = [layout.stem["norm"], *(layout.block + layout.parts[n] for n in ("norm1", "norm2"))]
    for norm in norms:
        first = norm.format(i=0)
        if f"{first}.weight" in tensors and f"{first}.bias" not in tensors:
            raise refuse(
                f"This {layout.name} checkpoint", f"RMSNorm, or LayerNorm without a bias ('{first}' has only a weight)"
            )
    if layout.name == "timm" and _residual_post_norm(layout, list(tensors)):
        raise refuse("This timm checkpoint", "residual post-norm blocks (its norms stand after attention and MLP)")


def _residual_post_norm(layout: Layout, keys: list[str]) -> bool:
    """timm's ResPostBlock has a plain block's names and shapes; only the order in which torch saved them differs."""
    keys = [key for key in keys if key.startswith("blocks.")]
    order = [keys.index(k) for k in ("blocks.0.attn.qkv.weight", "blocks.0.norm1.weight") if k in keys]
    return len(order) == 2 and order[0] < order[1] and keys != sorted(keys)


def not_a_vit(names: list[str], nearest: str, share: float) -> VitedgeError:
    """The error for a checkpoint of names that no layout knows: what it seems to be."""
    for pattern, what in _FOREIGN:
        for name in names:
            if re.search(pattern, name):
                return VitedgeError(
                    f"This is not the checkpoint of a Vision Transformer for classification that "
                    f"vitedge knows: it seems to be {what}.",
                    f"It holds '{name}'. {PLAIN}",
                    FAMILY,
                )
    return VitedgeError(
        "This is not the checkpoint of a Vision Transformer for classification.",
        f"Of the nearest layout ({nearest}) only {share:.0%} of the tensors are there; "
        f"the file holds, for example, {', '.join(sorted(names)[:4])}.",
        "Give a state dict of torchvision's or timm's VisionTransformer, or of Hugging Face's "
        "ViTForImageClassification. " + SAVE,
    )
