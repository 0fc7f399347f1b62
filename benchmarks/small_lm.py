"""A small language model trained on the spot, for benchmarks that need the logits of a trained one.

The text is the Python standard library's source and wikitext-2; the tokens are GPT-2's (50,257) or a byte-level BPE of
8,192 trained on the text. One file in every twenty is held out: logits are taken there.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CACHE = Path(os.environ.get("POTSTILL_CODECS", Path.home() / ".cache" / "potstill" / "codecs"))
CONTEXT = 256
BATCH = 4  # small: in a few minutes the number of steps limits what is learned


def packages() -> None:
    """Install what only this benchmark needs beside the caches, not in the environment of potstill."""
    if not (CACHE / "tokenizers").exists() or not (CACHE / "zstandard").exists():
        wanted = ["tokenizers==0.23.3", "zstandard==0.25.0"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(CACHE)]
        subprocess.run([*pip, *wanted], check=True)


def read(path: Path) -> str:
    return lzma.decompress(path.read_bytes()).decode("utf-8")


def documents() -> tuple[list[str], list[str]]:
    """Return the texts to train on and the held-out ones."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    wiki = Path(os.environ["POTSTILL_DATA"]) / "wikitext2"
    for name in ("valid", "test"):
        articles = read(wiki / f"{name}.txt.xz")
        texts += [articles[start : start + 20_000] for start in range(0, len(articles), 20_000)]
    texts = [text for text in texts if len(text) > 200]
    order = np.random.default_rng(0).permutation(len(texts))
    held = len(texts) // 20
    return [texts[place] for place in order[held:]], [texts[place] for place in order[:held]]


def tokenizer(vocabulary: int, texts: list[str]):
    sys.path.insert(0, str(CACHE))
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary == 50_257:
        folder = Path(os.environ["POTSTILL_DATA"]) / "tokenizers"
        ids = json.loads(read(folder / "gpt2-encoder.json.xz"))
        lines = read(folder / "gpt2-vocab.bpe.xz").splitlines()
        merges = [tuple(line.split()) for line in lines[1:] if line]
        made = Tokenizer(models.BPE(ids, merges))
    else:
        made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if vocabulary != 50_257:
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        made.train_from_iterator(texts, trainer)
    return made


def tokens(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the training text and of the held-out text, made once."""
    path = CACHE / f"tokens-{vocabulary}.npz"
    if not path.exists():
        train, held = documents()
        made = tokenizer(vocabulary, train)
        sides = [
            np.concatenate([np.array(made.encode(text).ids, np.int32) for text in texts]) for texts in (train, held)
        ]
        np.savez(path, train=sides[0], held=sides[1])
    loaded = np.load(path)
    return loaded["train"], loaded["held"]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.mix(self.before(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.between(x))))


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.head = nn.Parameter(0.02 * torch.randn(vocabulary, width))  # also the embedding
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(layers))
        self.last = nn.RMSNorm(width)
        for block in self.blocks:
            nn.init.zeros_(block.out.weight)
            nn.init.zeros_(block.down.weight)

    def hidden(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.head) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def trained(vocabulary: int, width: int, layers: int, seconds: float) -> LanguageModel:
    """Return the model after ``seconds`` of processor time, from the cache when it is there.

    For the first two thirds of the time the partition function of a large vocabulary is estimated from 4,096 tokens
    drawn uniformly, which makes a step several times cheaper; the rest uses the whole vocabulary.
    """
    path = CACHE / f"model-{vocabulary}-{width}-{layers}-{int(seconds)}.pt"
    torch.manual_seed(0)
    model = LanguageModel(vocabulary, width, layers)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    text = torch.from_numpy(tokens(vocabulary)[0].astype(np.int64))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    draws = torch.Generator().manual_seed(1)
    begin, step, seen = time.process_time(), 0, 0
    while (done := (time.process_time() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 100, 1.02 - done)
        starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH,), generator=draws)
        piece = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
        targets = piece[:, 1:].flatten()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.hidden(piece[:, :-1]).flatten(0, 1)
            if vocabulary > 16_384 and done < 2 / 3:
                others = torch.randint(0, vocabulary, (4096,), generator=draws)
                own = (hidden.float() * model.head[targets]).sum(1)
                logits = (hidden @ model.head[others].T).float() + math.log(vocabulary / len(others))
                logits = logits.masked_fill(others == targets[:, None], -math.inf)
                loss = (torch.logsumexp(torch.cat((logits, own[:, None]), 1), 1) - own).mean()
            else:
                loss = F.cross_entropy((hidden @ model.head.T).float(), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step, seen = step + 1, seen + len(targets)
        if step % 100 == 0:
            print(f"{vocabulary} x {width}: {done:.0%}, {seen} tokens, loss {loss.item():.2f}", flush=True)
    torch.save(model.state_dict(), path)
    return model.eval()


@torch.inference_mode()
def held_out(model: LanguageModel, vocabulary: int, count: int) -> tuple[Tensor, Tensor]:
    """Return hidden states (count, width) on held-out text, and the tokens that follow."""
    text = torch.from_numpy(tokens(vocabulary)[1].astype(np.int64))
    pieces = text[: count // CONTEXT * CONTEXT + 1]
    inputs, targets = pieces[:-1].view(-1, CONTEXT), pieces[1:]
    hidden = [model.hidden(part).flatten(0, 1) for part in inputs.split(16)]
    return torch.cat(hidden), targets
