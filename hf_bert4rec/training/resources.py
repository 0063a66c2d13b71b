"""What a run needs of the machine: memory, told before it is taken, and what becomes of memory between steps."""

import ctypes
import logging
import os
import sys
from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedModel

from ..models.configuration_gru4rec import Gru4RecConfig

logger = logging.getLogger(__name__)

GB = 10**9
GAPS = 1.25  # what an allocator holds of what it is asked for, when it keeps what is freed
MANY_ITEMS = 100_000  # here a step with the full softmax takes 15 times as long as one with a sampled one
FEWER = "a smaller hidden_size, or leave out rare items (min_item_interactions)"
PARTS = ("parameters", "gradients", "optimizer_state", "activations", "loss")


@dataclass
class MemoryEstimate:
    """Memory of a training run in GB, by what needs it, in float32; and what to do where it is too much."""

    parameters: float
    gradients: float
    optimizer_state: float
    activations: float
    loss: float
    advice: str

    @property
    def total(self) -> float:
        """The sum, in GB. What the process holds before (libraries, data) comes on top."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def fixed(self) -> float:
        """What is needed whatever the batch and the loss, in GB."""
        return self.parameters + self.gradients + self.optimizer_state

    def __str__(self) -> str:
        parts = ", ".join(f"{part.replace('_', ' ')} {shown(getattr(self, part))}" for part in PARTS)
        return f"{shown(self.total)} ({parts})"


def shown(gigabytes: float) -> str:
    """An amount of memory for people."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:.1f} MB"


def estimate_memory(
    model: PreTrainedModel,
    batch_size: int,
    length: int,
    scored_share: float = 0.2,
    gradient_checkpointing: bool = False,
) -> MemoryEstimate:
    """Peak memory of training steps with AdamW, from the shapes alone. Evaluation is not counted.

    Numbers kept for the backward pass are counted a position: 4 d by the embeddings (sum, normalised, mask and result
    of dropout; 2 d more with a convolution); 10 d + 2 f by a layer (query, key, value, attention, and twice mask,
    residual and norm; f twice in the feed-forward), and the attention weights, once where they are made in full, three
    times with dropout on them; by the last layer 2 d (key, value) and the rest at the scored positions only. The layer
    that is just worked on holds 3 f more. With checkpointing the layers before the last keep their input, and one of
    them is made again at a time. A GRU keeps 9 d. All of it is held with gaps of a quarter, but with checkpointing,
    where freed memory goes back to the system.

    Args:
        model: Any of the package; on the meta device it takes no memory itself.
        batch_size: Rows of a step and device.
        length: Longest row.
        scored_share: Share of the positions that is scored, for the cloze task its mask probability.
        gradient_checkpointing: Whether layers are computed again in the backward pass.
    """
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows, d, f, layers = config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers
    positions, table = batch_size * length, rows * (config.hidden_size + 1)
    scored = positions * min(1, scored_share)
    if isinstance(config, Gru4RecConfig):
        activations = positions * d * (4 + 9 * layers)
    else:
        full = config._attn_implementation == "eager"
        weights = config.num_attention_heads * length * (3 if config.attention_probs_dropout_prob else int(full))
        layer = 10 * d + 2 * f + weights
        embeddings = (4 if config.conv_kernel_size is None else 6) * d
        if gradient_checkpointing:
            activations = positions * (embeddings + (layers - 1) * d + layer + f)
        else:
            activations = positions * (embeddings + (layers - 1) * layer + 2 * d + 3 * f) + scored * layer
    if config.loss == "softmax":
        loss = min(config.loss_chunk_size, scored) * rows + 2 * table + scored * 2 * d
        lower = "loss='sampled_softmax', or a smaller loss_chunk_size"
    elif config.share_negatives:
        loss = 4 * scored * config.num_negatives + table
        lower = "fewer num_negatives"
    else:
        loss = 2 * scored * config.num_negatives * d + table
        lower = "share_negatives=True, or fewer num_negatives"
    gaps = 1 if gradient_checkpointing else GAPS
    if 4 * parameters > gaps * max(activations, loss):
        lower = FEWER
    elif activations > loss:
        more = model.supports_gradient_checkpointing and not gradient_checkpointing
        lower = "a smaller per_device_train_batch_size" + (", or gradient_checkpointing" if more else "")
    numbers = (parameters, parameters, 2 * parameters, gaps * activations, gaps * loss)
    sizes = {part: 4 * count / GB for part, count in zip(PARTS, numbers, strict=True)}
    return MemoryEstimate(**sizes, advice=f"take {lower}")


def free_memory(device: torch.device) -> float:
    """GB that a process can take of a device; processes on the processor share what there is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GB
    return psutil.virtual_memory().available / GB / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def check_memory(estimate: MemoryEstimate, free: float) -> None:
    """Refuse a model that cannot be trained with `free` GB.

    Raises:
        MemoryError: Parameters, gradients and optimiser state alone are larger.
    """
    if estimate.fixed > free:
        raise MemoryError(
            f"Parameters, gradients and optimiser state take {estimate.fixed:.2f} GB, {free:.2f} GB are free: take "
            f"{FEWER}."
        )


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep freed memory for the next operation, or none of it, where it is glibc's.

    By default it gives blocks past 32 MB back to the system at once, and every operation of the next step gets fresh
    pages that must be cleared first: training is 1.1 to 1.2 times faster when all are kept. Then the process does not
    shrink, and what is kept has gaps: with gradient checkpointing these would be larger than what it saves (12 layers,
    128 rows of 200: 1.16 GB instead of .26), so there everything past 1 MB goes back. It holds for the whole process;
    other allocators (jemalloc, musl) are left as they are.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(option, 2**31 - 1 if keep else 2**20)
