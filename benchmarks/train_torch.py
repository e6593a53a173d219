"""The train step of TIPSv2, written plainly in PyTorch with `torch.compile`.

    python -m benchmarks.train_torch --config FILE.py --batch-size N

The counterpart of `python -m benchmarks.train --synthetic --set
optimizer.optimizer=adamw` on one GPU: the same configuration file, sizes and terms (two
InfoNCE, DINO from local crops, iBOT++ on all patches, a teacher with an exponential
moving average of the head), one random batch, AdamW, bfloat16 by autocast. Logits are
float32 in both, those of the prototypes in chunks that the backward pass recomputes.
The blocks keep everything that their gradient needs, or only their inputs if
`compute.remat` is set. Needs the `[torch]` extra. Prints JSON.
"""

import copy
import functools
import json
import math
import pathlib
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recipes import command_line
from trainer import config, config_files
from trainer.config import (
    TWO_TOKENS,
    AntiCollapse,
    ContrastiveLoss,
    Ema,
    FeedForward,
    HeadConfig,
    ModelConfig,
    PatchLoss,
    PatchReduction,
    Remat,
    SelfSupervisionConfig,
    TextConfig,
    TrainConfig,
    TransformerConfig,
    VisionConfig,
)
from trainer.loop import flops

FULL = pathlib.Path(__file__).parent.parent / "trainer/configs/tipsv2_b14.py"
N_WARM_UP_STEPS = 3
N_TOKENS_PER_CHUNK = 32  # of each image, through the prototypes at once
_LAYER_NORM = functools.partial(nn.LayerNorm, eps=1e-6)
_AGAIN = functools.partial(checkpoint, use_reentrant=False)


class Block(nn.Module):
    def __init__(self, sizes: TransformerConfig):
        super().__init__()
        width, is_gelu = sizes.width, sizes.feed_forward is FeedForward.GELU
        self.n_heads = sizes.n_heads
        self.norm_1, self.norm_2 = _LAYER_NORM(width), _LAYER_NORM(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, sizes.mlp_dim),
            nn.GELU("tanh") if is_gelu else nn.ReLU(),
            nn.Linear(sizes.mlp_dim, width),
        )

    def forward(self, x: Tensor, is_valid: Tensor | None = None) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.norm_1(x)).view(b, t, 3, self.n_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=is_valid
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    def __init__(self, sizes: TransformerConfig, *, keeps_inputs_alone: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.n_layers))
        self.norm = _LAYER_NORM(sizes.width)
        self.keeps_inputs_alone = keeps_inputs_alone

    def forward(self, x: Tensor, is_valid: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            again = self.keeps_inputs_alone
            x = _AGAIN(block, x, is_valid) if again else block(x, is_valid)
        return self.norm(x.float())


class Vision(nn.Module):
    """Maps images as bytes, channels first, to tokens: two CLS, then patches."""

    def __init__(self, sizes: VisionConfig, *, keeps_inputs_alone: bool):
        super().__init__()
        width, size = sizes.width, sizes.patch_size_px
        self.embedding = nn.Conv2d(3, width, size, stride=size)
        positions = torch.randn(1, width, *sizes.position_grid) / math.sqrt(width)
        self.positions = nn.Parameter(positions)
        self.cls = nn.Parameter(torch.zeros(1, 2, width))
        self.mask_token = nn.Parameter(torch.zeros(width, 1, 1))
        self.transformer = Transformer(sizes, keeps_inputs_alone=keeps_inputs_alone)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        grid = self.embedding(images / 255)
        if mask is not None:
            grid = torch.where(mask[:, None], self.mask_token, grid)
        positions = functional.interpolate(
            self.positions, grid.shape[2:], mode="bilinear", antialias=True
        )
        patches = (grid + positions).flatten(2).transpose(1, 2)
        cls = self.cls.expand(len(images), -1, -1)
        return self.transformer(torch.cat([cls, patches], dim=1))


class Text(nn.Module):
    def __init__(self, sizes: TextConfig, *, keeps_inputs_alone: bool):
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary_size, sizes.width)
        nn.init.normal_(self.embedding.weight, std=sizes.width**-0.5)
        self.transformer = Transformer(sizes, keeps_inputs_alone=keeps_inputs_alone)
        n_frequencies = sizes.width // 2
        exponents = torch.arange(n_frequencies) / (n_frequencies - 1)
        angles = torch.arange(sizes.max_tokens)[:, None] / 10_000**exponents
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, ids: Tensor) -> Tensor:
        is_valid = ids != config.PAD_ID
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        x = self.transformer(x + self.positions, is_valid[:, None, None])
        weights = is_valid[..., None].float()
        return (x * weights).sum(1) / weights.sum(1)


class Head(nn.Module):
    """Maps tokens to unit vectors; holds prototypes as unit rows."""

    def __init__(self, sizes: HeadConfig, width: int):
        super().__init__()
        hidden = [sizes.hidden_dim] * (sizes.n_layers - 1)
        layers: list[nn.Module] = []
        for n_inputs, n_outputs in zip([width, *hidden], hidden, strict=False):
            layers += [nn.Linear(n_inputs, n_outputs), nn.GELU("tanh")]
        self.mlp = nn.Sequential(
            *layers, nn.Linear([width, *hidden][-1], sizes.bottleneck_dim)
        )
        rows = torch.randn(sizes.n_prototypes, sizes.bottleneck_dim)
        self.rows = nn.Parameter(0.02 * rows)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        vectors = functional.normalize(self.mlp(tokens).float(), dim=-1)
        return vectors, functional.normalize(self.rows, dim=-1)


class Student(nn.Module):
    def __init__(self, sizes: ModelConfig, *, keeps_inputs_alone: bool):
        super().__init__()
        self.vision = Vision(sizes.vision, keeps_inputs_alone=keeps_inputs_alone)
        self.text = Text(sizes.text, keeps_inputs_alone=keeps_inputs_alone)
        self.head = Head(sizes.head, sizes.vision.width)
        start = math.log(sizes.initial_temperature)
        self.log_temperatures = nn.Parameter(torch.full((2,), start))


def info_nce(image: Tensor, text: Tensor, log_temperature: Tensor) -> Tensor:
    image, text = functional.normalize(image), functional.normalize(text)
    logits = image @ text.T / log_temperature.exp()
    matching = torch.arange(len(logits), device=logits.device)
    rows = functional.cross_entropy(logits, matching)
    return (rows + functional.cross_entropy(logits.T, matching)) / 2


def cross_entropy(
    ours: tuple[Tensor, Tensor],
    theirs: tuple[Tensor, Tensor],
    center: Tensor,
    ssl: SelfSupervisionConfig,
) -> Tensor:
    """Returns the mean over tokens, computed in chunks of each image's tokens."""

    def of_chunk(vectors: Tensor, targets: Tensor) -> Tensor:
        log_q = (vectors @ ours[1].T / ssl.student_temperature).log_softmax(-1)
        logits = (targets @ theirs[1].T - center) / ssl.teacher_temperature
        return -(logits.softmax(-1) * log_q).sum()

    n_tokens = ours[0].shape[:2].numel()
    targets = theirs[0].expand(*ours[0].shape[:2], -1)
    chunks = zip(
        ours[0].split(N_TOKENS_PER_CHUNK, dim=1),
        targets.split(N_TOKENS_PER_CHUNK, dim=1),
        strict=True,
    )
    return sum(_AGAIN(of_chunk, *chunk) for chunk in chunks) / n_tokens


def objective(
    student: Student,
    teacher: Head,
    centers: Tensor,
    batch: dict[str, Tensor],
    settings: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """Returns the loss, and the teacher's mean logits for the two centers."""
    ssl = settings.self_supervision
    images, crops = batch["images"], batch["local_crops"]
    with _autocast(settings, images.device):
        masks = torch.cat([torch.zeros_like(batch["mask"]), batch["mask"]])
        tokens = student.vision(torch.cat([images, images]), masks)
        whole, masked = tokens.chunk(2)
        local_cls = student.vision(crops.flatten(0, 1))[:, 0]
        alt_text, synthetic = student.text(batch["ids"]).chunk(2)
        patches = student.head(masked[:, 2:])
        local = student.head(local_cls.unflatten(0, crops.shape[:2]))
        with torch.no_grad():
            target, target_patches = teacher(whole[:, :1]), teacher(whole[:, 2:])
    means = [(x.mean((0, 1)) @ rows.T).detach() for x, rows in (target, target_patches)]
    temperatures = student.log_temperatures
    loss = (
        info_nce(whole[:, 0], alt_text, temperatures[0])
        + info_nce(whole[:, 1], synthetic, temperatures[1])
    ) / 2
    distillation = cross_entropy(local, target, centers[0], ssl)
    loss = loss + ssl.distillation_weight * distillation
    patch = cross_entropy(patches, target_patches, centers[1], ssl)
    return loss + ssl.patch_weight * patch, torch.stack(means)


def _autocast(settings: TrainConfig, device: torch.device) -> torch.autocast:
    is_bfloat16 = settings.compute.dtype == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16)


class Trainer:
    """One step: loss, gradients, AdamW and the teacher's averages."""

    def __init__(self, settings: TrainConfig, device: torch.device):
        self.settings = settings
        again = settings.compute.remat is not Remat.NONE
        student = Student(settings.model, keeps_inputs_alone=again)
        self.student = student.to(device)
        self.teacher = copy.deepcopy(self.student.head).requires_grad_(False)
        n_prototypes = settings.model.head.n_prototypes
        self.centers = torch.zeros(2, n_prototypes, device=device)
        self.objective = torch.compile(objective)
        chosen = settings.optimizer
        matrices = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
            lr=chosen.learning_rate,
            betas=(chosen.beta1, chosen.beta2),
            weight_decay=chosen.weight_decay,
            fused=True,
        )

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        ssl, chosen = self.settings.self_supervision, self.settings.optimizer
        loss, means = self.objective(
            self.student, self.teacher, self.centers, batch, self.settings
        )
        loss.backward()
        parameters = list(self.student.parameters())
        nn.utils.clip_grad_norm_(parameters, chosen.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.centers.lerp_(means, 1 - ssl.center_momentum)
            old, new = self.teacher.parameters(), self.student.head.parameters()
            torch._foreach_lerp_(list(old), list(new), 1 - ssl.ema_decay)
        return loss.detach()


def random_batch(settings: TrainConfig, device: torch.device) -> dict[str, Tensor]:
    data, model = settings.data, settings.model
    b, size, side = data.batch_size, data.global_crop.size_px, data.local_crop.size_px
    n = size // model.vision.patch_size_px
    integers = functools.partial(torch.randint, device=device)
    crops = (b, data.n_local_crops, 3, side, side)
    return {
        "images": integers(256, (b, 3, size, size), dtype=torch.uint8),
        "local_crops": integers(256, crops, dtype=torch.uint8),
        "mask": torch.rand(b, n, n, device=device)
        < settings.self_supervision.mask_ratio,
        "ids": integers(1, model.text.vocabulary_size, (2 * b, model.text.max_tokens)),
    }


def check(settings: TrainConfig) -> None:
    """Raises ValueError for settings that are not TIPSv2 or not implemented here."""
    ssl, model = settings.self_supervision, settings.model
    expected = {
        "self_supervision.patch_loss": (ssl.patch_loss, PatchLoss.IBOT_PLUS_PLUS),
        "self_supervision.patch_reduction": (ssl.patch_reduction, PatchReduction.MEAN),
        "self_supervision.ema": (ssl.ema, Ema.HEAD),
        "self_supervision.anti_collapse": (ssl.anti_collapse, AntiCollapse.CENTERING),
        "model.contrastive_loss": (model.contrastive_loss, ContrastiveLoss.INFO_NCE),
        "model.head.is_shared": (model.head.is_shared, True),
        "model.vision.feed_forward": (model.vision.feed_forward, FeedForward.GELU),
        "model.text.feed_forward": (model.text.feed_forward, FeedForward.RELU),
        "compute.n_microbatches": (settings.compute.n_microbatches, 1),
        "contrastive": (settings.contrastive, TWO_TOKENS),
        "terms": (settings.terms, ()),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise ValueError(f"{name}={found}: expected {wanted}")
    if not (ssl.distillation_weight > 0 and ssl.patch_weight > 0):
        raise ValueError("self_supervision: expected both weights more than 0")


def measure(settings: TrainConfig, n_steps: int) -> dict[str, Any]:
    """Measures the mean over steps, waiting for the device once at the end."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer, batch = Trainer(settings, device), random_batch(settings, device)
    for _ in range(N_WARM_UP_STEPS):
        first = float(trainer.step(batch))
    start = time.perf_counter()
    for _ in range(n_steps):
        loss = trainer.step(batch)
    last = float(loss)  # waits for the device
    seconds = (time.perf_counter() - start) / n_steps
    images_per_s = settings.data.batch_size / seconds
    speed = images_per_s * flops.flops_per_image(settings)
    is_gpu = device.type == "cuda"
    found = {
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",
        "torch": torch.__version__,
        "dtype": settings.compute.dtype,
        "batch_size": settings.data.batch_size,
        "images_per_s": round(images_per_s, 2),
        "tflop_per_s": round(speed / 1e12, 4),
        "losses": [round(first, 4), round(last, 4)],
    }
    if is_gpu:
        found["device_peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
    if found["device"] in flops.PEAKS:
        peak = flops.PEAKS[found["device"]]
        found |= {"mfu": round(speed / peak.flops_per_s, 4), "peak": peak.name}
    return found


def main() -> None:
    parser = command_line.Parser(
        prog="python -m benchmarks.train_torch", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config", default=FULL, metavar="FILE.py")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="to time")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="a.b=value"
    )
    flags = parser.parse_args()
    with command_line.exits(command_line.WRONG_USAGE, ValueError):
        if flags.steps < 1:
            raise ValueError(f"--steps={flags.steps}: expected 1 or more")
        size = f"data.batch_size={flags.batch_size}"
        settings = config_files.load(flags.config, [*flags.overrides, size])
        check(settings)
    torch.set_float32_matmul_precision("high")  # as JAX does: TF32
    print(json.dumps(measure(settings, flags.steps), indent=1))


if __name__ == "__main__":
    main()
