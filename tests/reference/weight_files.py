"""Names and shapes of the weight files people have, made from the architectures' definitions.

The released LVM-Med files are not available here; their lists of names are those of the public
descriptions: torchvision's ResNet-50 without classifier (318 tensors, 23,508,032 parameters), and
SAM's ViT-B image encoder without absolute positions (176 tensors, 86,525,184 parameters).
"""

import torch


def _norm(name, width):
    shapes = {"weight": (width,), "bias": (width,), "running_mean": (width,)}
    shapes = {**shapes, "running_var": (width,), "num_batches_tracked": ()}
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def resnet_shapes(depths=(3, 4, 6, 3), *, bottleneck=True):
    """Torchvision's names, without fc."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    width_in = 64
    for stage, depth in enumerate(depths):
        inner = 64 * 2**stage
        outer = inner * (4 if bottleneck else 1)
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            sizes = [(inner, width_in, 1), (inner, inner, 3), (outer, inner, 1)]
            if not bottleneck:
                sizes = [(inner, width_in, 3), (inner, inner, 3)]
            for i, (num_out, num_in, side) in enumerate(sizes, start=1):
                shapes[f"{name}.conv{i}.weight"] = (num_out, num_in, side, side)
                shapes |= _norm(f"{name}.bn{i}", num_out)
            if block == 0 and (width_in != outer or stage > 0):
                shapes[f"{name}.downsample.0.weight"] = (outer, width_in, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", outer)
            width_in = outer
    return shapes


def sam_vit_b_shapes():
    """SAM's names for the ViT-B image encoder at 1024 px, without pos_embed, with neck."""
    shapes = {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    for block in range(12):
        num_offsets = 127 if block in (2, 5, 8, 11) else 27  # 64 x 64 tokens, or windows of 14
        for key, shape in {
            "norm1.weight": (768,),
            "norm1.bias": (768,),
            "attn.rel_pos_h": (num_offsets, 64),
            "attn.rel_pos_w": (num_offsets, 64),
            "attn.qkv.weight": (2304, 768),
            "attn.qkv.bias": (2304,),
            "attn.proj.weight": (768, 768),
            "attn.proj.bias": (768,),
            "norm2.weight": (768,),
            "norm2.bias": (768,),
            "mlp.lin1.weight": (3072, 768),
            "mlp.lin1.bias": (3072,),
            "mlp.lin2.weight": (768, 3072),
            "mlp.lin2.bias": (768,),
        }.items():
            shapes[f"blocks.{block}.{key}"] = shape
    neck = {"0.weight": (256, 768, 1, 1), "1.weight": (256,), "1.bias": (256,)}
    neck |= {"2.weight": (256, 256, 3, 3), "3.weight": (256,), "3.bias": (256,)}
    return shapes | {f"neck.{key}": shape for key, shape in neck.items()}


def tensors(shapes, *, seed=0):
    """Small random tensors of these shapes; counters are whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.02
        if not name.endswith("num_batches_tracked")
        else torch.tensor(5)
        for name, shape in shapes.items()
    }
