"""How well does a base model fine-tune? LoRA on rows of one held-out schema, exact match on fresh rows of it.

python probe.py MODEL [--domain museum] [--rows 1000] [--epochs 5] [--test 300]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from domain import HELD_OUT
from generate import Group, schema_rows
from packing import encode_group
from peft import LoraConfig, get_peft_model
from render import instruction, make_style
from schema import Schema, make_schema
from tokenizer import Encoder
from transformers import AutoModelForCausalLM


def task(domain: str, seed: int, rows: int) -> Group:
    """`rows` rows of one schema of a held-out domain, in the function(attribute[value]) style."""
    rng = random.Random(seed)
    schema: Schema = make_schema(rng, True, (domain,))
    while len(schema.functions) < 5 or len(schema.slots) < 8 or schema.lower:
        schema = make_schema(rng, True, (domain,))
    style = make_style(rng)
    style.kind, style.list_join, style.joiner = "func", ", ", ", "
    pairs = schema_rows(rng, schema, style, rows)
    rng.shuffle(pairs)
    return Group(instruction(rng, schema, style), "main", pairs)


def batch_of(
    rows: list[tuple[list[int], int]], pad: int, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask, labels [batch, width], right-padded; only answers have labels."""
    width = max(len(r) for r, _ in rows)
    ids = torch.tensor([r + [pad] * (width - len(r)) for r, _ in rows])
    labels = torch.tensor([[-100] * a + r[a:] + [-100] * (width - len(r)) for r, a in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r, _ in rows])
    return ids.to(device), mask.to(device), labels.to(device)


def main() -> None:
    """Fine-tune and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--domain", choices=HELD_OUT, default=HELD_OUT[0])
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    enc = Encoder(args.model)
    group = task(args.domain, args.seed, args.rows + args.test)
    prefix, encoded = encode_group(enc, group)
    # The trailing newline after the end token is not trained on.
    rows = [(prefix + ids[:-1], len(prefix) + start) for ids, start in encoded]
    train, test = rows[: args.rows], rows[args.rows :]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    config = LoraConfig(r=64, lora_alpha=128, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0)
    steps = args.epochs * ((len(train) + args.batch - 1) // args.batch)
    done, start = 0, time.perf_counter()
    rng = random.Random(0)
    for epoch in range(args.epochs):
        rng.shuffle(train)
        total = 0.0
        for i in range(0, len(train), args.batch):
            ids, mask, labels = batch_of(train[i : i + args.batch], enc.pad, device)
            for g in optimizer.param_groups:
                g["lr"] = args.lr * min(1.0, (done + 1) / 20) * (1 - done / steps)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            total += loss.item()
        print(
            json.dumps(
                {
                    "epoch": epoch + 1,
                    "loss": round(total / (steps / args.epochs), 4),
                    "seconds": round(time.perf_counter() - start),
                }
            ),
            flush=True,
        )
    model.eval()
    hits = 0
    for i in range(0, len(test), 50):
        part = test[i : i + 50]
        width = max(a for _, a in part)
        ids = torch.tensor([[enc.pad] * (width - a) + r[:a] for r, a in part], device=device)
        mask = torch.tensor([[0] * (width - a) + [1] * a for _, a in part], device=device)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(len(r) - a for r, a in part) + 8,
                do_sample=False,
            )
        for got, (r, a) in zip(out[:, width:].tolist(), part, strict=True):
            got = got[: got.index(enc.end) + 1] if enc.end in got else got
            hits += got == r[a:]
            if got != r[a:] and hits % 3 == 0:
                print(
                    f"  {enc.tok.decode(r[len(prefix) : a])!r}\n    want {enc.tok.decode(r[a:])}\n    got  {enc.tok.decode(got)}"
                )
    print(
        json.dumps(
            {
                "domain": args.domain,
                "seed": args.seed,
                "rows": len(train),
                "test": len(test),
                "exact_match": round(hits / len(test), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
