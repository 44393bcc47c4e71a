"""The attentive probe: one learned query looks at all tokens of a frozen encoder, and a linear layer at what it found.

It is fitted by the shared training loop, from tokens that are read from a store: in its order, resumable, and on as
many processes as there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mvd_offline.coding import decode
from mvd_offline.models.saving import write_safetensors
from mvd_offline.models.vit import LayerNorm
from mvd_offline.probing.stores import FeatureStore, labels_of
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import OptimSection, TrainingSection
from mvd_offline.shards.schema import sha256_of
from mvd_offline.targets import CachedReader
from mvd_offline.training.averages import Average
from mvd_offline.training.loop import Batch, train
from mvd_offline.training.optim import parameter_groups
from mvd_offline.training.order import BatchRequest, epoch_order
from mvd_offline.training.state import RunIdentity

DEFAULT_EPOCHS: Final = 20.0
LEAST_STEPS: Final = 500
CHECKPOINTS: Final = 20
"""Of a fit, at most one an epoch: an epoch of few clips takes less time than its checkpoint."""
PROBE_FILE: Final = "attentive.safetensors"
MICRO_ROWS: Final = 64
"""Most clips of one forward pass of a process."""


class AttentiveHead(nn.Module):
    """(B, N, D) to (B, classes): cross-attention of one query, an MLP, a linear layer (as in V-JEPA and CAE)."""

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.norm_tokens = LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens, query = self.norm_tokens(tokens), self.query.expand(len(tokens), -1, -1)
        found = query + self.attention(query, tokens, tokens, need_weights=False)[0]
        found = found + self.mlp(self.norm(found))
        return self.head(found[:, 0])


@dataclass(frozen=True)
class AttentiveSettings:
    """How the head is fitted: AdamW, a tenth of the epochs of warm-up, cosine to zero."""

    epochs: float | None = None
    """None: 20, and more where that would be fewer than `LEAST_STEPS`."""
    batch_size: int = 256
    base_lr: float = 1e-3
    """For `batch_size` clips."""
    weight_decay: float = 0.05
    seed: int = 0

    def optim(self, rows: int, processes: int) -> OptimSection:
        """The loop's section; where there are fewer rows than `batch_size`, a batch has as many as go."""
        most = min(self.batch_size, rows)
        micro = min(MICRO_ROWS, max(1, most // processes))
        batch = max(1, most // (micro * processes)) * micro * processes
        epochs = self.epochs or max(DEFAULT_EPOCHS, LEAST_STEPS / max(1, rows // batch))
        return OptimSection(
            epochs=epochs,
            warmup_epochs=epochs / 10,
            batch_size=batch,
            micro_batch_size=micro,
            base_lr=self.base_lr,
            min_lr=0.0,
            lr_reference_batch=self.batch_size,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.999),
        )


@dataclass
class TokenReader:
    """Reads the tokens of a micro-batch as they are stored, and their labels."""

    source: CachedReader
    labels: NDArray[np.int64]

    def __call__(self, request: BatchRequest) -> Batch:
        return {
            "coded": self.source.read(request.rows, None)["video"],
            "labels": torch.from_numpy(self.labels[list(request.rows)]),
        }


class AttentiveTask:
    """Fitting the head, for the shared loop."""

    def __init__(self, features: FeatureStore, classes: int, heads: int, settings: AttentiveSettings) -> None:
        self.title, self.unit = "attentive probe", "clips"
        self._features, self._settings = features, settings
        spec, store = features.spec, features.store
        self.identity = RunIdentity(f"{store.store_id}/{spec.column_id}", settings.seed, settings.batch_size)
        torch.manual_seed(KeyedStream("attentive", settings.seed).torch_seed())
        self.head = AttentiveHead(spec.width, heads, classes)
        self.model: nn.Module = self.head
        self.averages: Mapping[str, Average] = {}
        self.may_wait = False
        # The reader's key is one of a teacher's names; which of them does not matter here.
        reader = CachedReader(store, {"video": features.column})
        self.reader: Callable[[BatchRequest], Batch] = TokenReader(reader, labels_of(store))
        usable = features.views
        self._shards = np.split(usable, np.flatnonzero(np.diff(usable // store.header.rows_per_shard)) + 1)

    def groups(self) -> list[dict[str, object]]:
        exempt = frozenset({"query"})
        return parameter_groups(self.model.named_parameters(), weight_decay=self._settings.weight_decay, exempt=exempt)

    def order(self, epoch: int) -> NDArray[np.int64]:
        store = self._features.store
        return epoch_order(self._shards, source=store.store_id, seed=self._settings.seed, epoch=epoch, window=64)

    def samples_per_epoch(self) -> int:
        return sum(map(len, self._shards))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = model(decode(batch["coded"], self._features.spec.codec)).float()
        accuracy = (logits.detach().argmax(dim=1) == batch["labels"]).float().mean()
        return {"loss": F.cross_entropy(logits, batch["labels"]), "accuracy": accuracy}

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        write_safetensors(folder / PROBE_FILE, state, {"format": "attentive probe"})


def fit_attentive(
    features: FeatureStore,
    classes: int,
    heads: int,
    settings: AttentiveSettings,
    *,
    folder: Path,
    workers: int,
    accelerator: Accelerator,
) -> AttentiveHead:
    """Fit the head on all processes; a fit that was interrupted goes on.

    Args:
        folder: holds the fit: one folder below it for each combination of features and settings.
    """
    task = AttentiveTask(features, classes, heads, settings)
    optim = settings.optim(task.samples_per_epoch(), accelerator.num_processes)
    training = TrainingSection(
        seed=settings.seed,
        workers=workers,
        log_every_steps=10,
        checkpoint_every_epochs=max(1.0, optim.epochs / CHECKPOINTS),
        keep_last=1,
    )
    run = folder / f"attentive-{_key([asdict(task.identity), asdict(settings), classes, heads])}"
    run.mkdir(parents=True, exist_ok=True)
    train(task, optim, training, run=run, accelerator=accelerator)
    return task.head.eval()


@torch.no_grad()
def attentive_scores(head: AttentiveHead, features: FeatureStore, device: torch.device) -> Tensor:
    """Logits (views, classes) of all views that have features."""
    parts, views = [], features.views
    for start in range(0, len(views), MICRO_ROWS):
        coded = torch.from_numpy(features.store.read_coded(features.column, views[start : start + MICRO_ROWS]))
        parts.append(head(decode(coded.to(device), features.spec.codec)).float())
    return torch.cat(parts)


def _key(settings: Any) -> str:
    return sha256_of(settings)[:12]
