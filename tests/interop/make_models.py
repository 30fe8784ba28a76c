"""Makes a tiny random model of each family with transformers, and what transformers computes from it.

    python make_models.py DIRECTORY

For each family a directory in the layout of save_pretrained, and beside the weights `expected.safetensors`:
`ids` [256], `logits` [256, vocab], `gradient.NAME` of the first training step for every parameter, and `expected.json`:
the losses of 50 AdamW steps on `ids`, the settings, and the versions that made them. All in f32.
The batch of step n is the 8 windows of 32 tokens of `train_ids` that start at 17 n + 31 i.
"""
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB, POSITIONS, STEPS, SEQUENCES, LENGTH = 48, 256, 50, 8, 32
LEARNING_RATE, BETAS, EPSILON, DECAY, CLIP = 2e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
BALANCE = 0.02

BASE = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
    initializer_range=0.2,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
EXPERTS = dict(num_experts_per_tok=2, router_aux_loss_coef=BALANCE)

FAMILIES = dict(
    llama=LlamaConfig(
        **BASE,
        intermediate_size=40,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=10000.0,
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    qwen3=Qwen3Config(
        **BASE,
        intermediate_size=40,
        head_dim=8,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=1,
    ),
    mixtral=MixtralConfig(**BASE, **EXPERTS, intermediate_size=20, num_local_experts=4, sliding_window=50),
    olmoe=OlmoeConfig(**BASE, **EXPERTS, intermediate_size=20, num_experts=6, norm_topk_prob=False),
    qwen3_moe=Qwen3MoeConfig(
        **BASE,
        **EXPERTS,
        intermediate_size=40,
        moe_intermediate_size=20,
        num_experts=6,
        norm_topk_prob=True,
        head_dim=8,
        mlp_only_layers=[0],
        rope_parameters=dict(
            rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64
        ),
    ),
    glm4_moe=Glm4MoeConfig(
        **BASE,
        num_experts_per_tok=2,
        intermediate_size=40,
        moe_intermediate_size=20,
        n_routed_experts=6,
        n_shared_experts=1,
        first_k_dense_replace=1,
        routed_scaling_factor=1.5,
        attention_bias=True,
        use_qk_norm=True,
        head_dim=8,
        num_mtp_layers=0,
    ),
)


def randomise(model):
    """Norms, biases and selection biases that are not one or zero, so that they count."""
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        if "norm" in name:
            tensor.data.copy_(1 + 0.2 * torch.randn_like(tensor))
        elif name.endswith("bias"):
            tensor.data.copy_(0.1 * torch.randn_like(tensor))


def batch(train_ids, step):
    starts = [17 * step + 31 * sequence for sequence in range(SEQUENCES)]
    rows = torch.stack([train_ids[start : start + LENGTH + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def balance_loss(model, router_logits, counts):
    """E / k · Σ share of assignments · mean probability, of each sparse layer by itself, then summed."""
    total = 0.0
    for logits in router_logits:
        scores = logits.float().softmax(-1)
        k = model.config.num_experts_per_tok
        chosen = scores.topk(k, -1).indices
        experts = scores.shape[-1]
        share = F.one_hot(chosen, experts).float().sum(1).mean(0) / k
        total = total + experts * (share * scores.mean(0)).sum()
        counts.append(F.one_hot(chosen, experts).sum((0, 1)).tolist())
    return total


def loss_of(model, ids, targets):
    has_balance = hasattr(model.config, "router_aux_loss_coef")
    extra = dict(output_router_logits=True) if has_balance else {}
    out = model(input_ids=ids, use_cache=False, **extra)
    cross_entropy = F.cross_entropy(out.logits.float().view(-1, VOCAB), targets.reshape(-1))
    counts = []
    balance = BALANCE * balance_loss(model, out.router_logits, counts) if has_balance else torch.zeros(())
    return cross_entropy, balance, counts


def train(model, train_ids, tensors):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [dict(params=decayed, weight_decay=DECAY), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    losses = []
    for step in range(STEPS):
        ids, targets = batch(train_ids, step)
        cross_entropy, balance, counts = loss_of(model, ids, targets)
        (cross_entropy + balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        if step == 0:
            for name, parameter in model.named_parameters():
                tensors[f"gradient.{name}"] = parameter.grad.clone()
        for parameter in model.parameters():
            if norm > CLIP:
                parameter.grad.mul_(CLIP / norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(dict(ce_loss=cross_entropy.item(), balance_loss=balance.item(), grad_norm=norm.item()))
    return losses


def main():
    out = Path(sys.argv[1])
    for name, config in FAMILIES.items():
        torch.manual_seed(len(name))
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).float().train()
        randomise(model)
        directory = out / name
        model.save_pretrained(directory)
        ids = torch.randint(VOCAB, (POSITIONS,))
        train_ids = torch.randint(VOCAB, (17 * STEPS + 31 * SEQUENCES + LENGTH + 1,))
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
        tensors = dict(ids=ids.to(torch.int32), train_ids=train_ids.to(torch.int32), logits=logits.contiguous())
        losses = train(model, train_ids, tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "expected.safetensors")
        expected = dict(
            versions=dict(torch=torch.__version__, transformers=transformers.__version__),
            settings=dict(
                learning_rate=LEARNING_RATE,
                betas=BETAS,
                epsilon=EPSILON,
                weight_decay=DECAY,
                clip_norm=CLIP,
                balance_loss_coefficient=BALANCE,
                sequences=SEQUENCES,
                length=LENGTH,
            ),
            steps=losses,
        )
        (directory / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        print(f"{name}: loss {losses[0]['ce_loss']:.4f} to {losses[-1]['ce_loss']:.4f}")


if __name__ == "__main__":
    main()
