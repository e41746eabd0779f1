"""The peer of `axismapper check-gpu`: transformers and PEFT, with bitsandbytes where it is installed, on the same shape.

    check_gpu_peer.py --case sft-lora|sft-dora|orpo-lora|orpo-dora|decode --shape qwen2.5-7b|tiny --device cuda

Random weights, made on the device. Prints one JSON object. Training is as users of QLoRA set it up: gradient
checkpointing, bf16, NF4 with double quantization, paged 8-bit AdamW; without bitsandbytes the weights stay bf16 and the
optimizer is torch's.
"""

import argparse
import json
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import Qwen2Config, Qwen2ForCausalLM

try:
    import bitsandbytes as bnb
except ImportError:
    bnb = None

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "qwen2.5-7b": dict(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        rope_theta=1e6,
    ),
    "tiny": dict(
        vocab_size=211,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=1e4,
    ),
}


def quantized(module: torch.nn.Module, device: torch.device) -> None:
    """Puts NF4 layers in the place of the linear ones, a layer at a time: the whole model never exists in 16 bits."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear) and name in MODULES:
            shape = (child.out_features, child.in_features)
            layer = bnb.nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                compress_statistics=True,
            )
            weight = torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer)
            layer.weight = layer.weight.to(device)
            if child.bias is not None:
                layer.bias = torch.nn.Parameter(torch.zeros(shape[0], device=device, dtype=torch.bfloat16), requires_grad=False)
            setattr(module, name, layer)
        else:
            quantized(child, device)


def base_model(shape: str, device: torch.device) -> Qwen2ForCausalLM:
    config = Qwen2Config(**SHAPES[shape], tie_word_embeddings=False, max_position_embeddings=32768)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    if bnb is not None:
        quantized(model, device)
    rest = [(name, tensor) for name, tensor in model.named_parameters() if tensor.is_meta]
    for name, tensor in rest:
        owner = model.get_submodule(name.rpartition(".")[0])
        made = torch.randn(tensor.shape, device=device, dtype=torch.bfloat16) * 0.02
        if tensor.dim() == 1:
            made = torch.zeros_like(made) if name.endswith("bias") else torch.ones_like(made)
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(made, requires_grad=False))
    # Rotary tables are buffers, made on the CPU and then moved.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    if bnb is not None:
        model.is_loaded_in_4bit = True
    return model


def orpo_loss(model, ids, masks, batch):
    """TRL's ORPO loss on chosen and rejected sequences in one batch, the likelihood over prompt and answer."""
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    targets = ids[:, 1:]
    logps = torch.log_softmax(logits, -1).gather(2, targets[..., None])[..., 0]
    answers = (logps * masks[:, 1:]).sum(1) / masks[:, 1:].sum(1)
    chosen, rejected = answers[:batch], answers[batch:]
    odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    return -logps[:batch].mean() - (0.1 * torch.nn.functional.logsigmoid(odds)).mean()


def train(args, device) -> dict:
    objective, adapter = args.case.split("-")
    base = base_model(args.shape, device)
    if bnb is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True)
    else:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MODULES, use_dora=adapter == "dora", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_8bit = bnb is not None and device.type == "cuda"
    optimizer = (bnb.optim.PagedAdamW8bit if is_8bit else torch.optim.AdamW)(trained, lr=1e-5, weight_decay=0.01)
    vocab, batch, length = SHAPES[args.shape]["vocab_size"], args.batch, args.len
    masks = None
    if objective == "sft":
        ids = torch.randint(vocab, (batch, length), device=device)
    else:
        prompts = torch.randint(vocab, (batch, length // 2), device=device)
        answers = torch.randint(vocab, (2 * batch, length // 4), device=device)
        ids = torch.cat([prompts.repeat(2, 1), answers], 1)
        masks = torch.zeros_like(ids, dtype=torch.float32)
        masks[:, length // 2 :] = 1

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss if masks is None else orpo_loss(model, ids, masks, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    seconds, n_steps = clock(step, device, args.seconds)
    # A preference record counts as here: its prompt once.
    tokens = batch * (length if masks is None else length // 2 + 2 * (length // 4))
    return {"tokens_per_second": tokens * n_steps / seconds, "seconds_a_step": seconds / n_steps, "n_steps": n_steps}


def decode(args, device) -> dict:
    model = base_model(args.shape, device).eval()
    ids = torch.randint(SHAPES[args.shape]["vocab_size"], (1, max(args.len // 4, 1)), device=device)
    with torch.no_grad():
        out = model(ids, use_cache=True)
        state = {"cache": out.past_key_values, "id": out.logits[:, -1].argmax(-1, keepdim=True)}

        def step() -> None:
            out = model(state["id"], past_key_values=state["cache"], use_cache=True)
            state["id"] = out.logits[:, -1].argmax(-1, keepdim=True)
            state["id"].item()

        for _ in range(8):
            step()
        seconds, n_steps = clock(step, device, args.seconds, args.len)
    return {"tokens_per_second": n_steps / seconds, "seconds_a_step": seconds / n_steps, "n_steps": n_steps}


def clock(step, device, limit: float, most: int = 1 << 30) -> tuple[float, int]:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start, n_steps = time.perf_counter(), 0
    while n_steps < 2 or (time.perf_counter() - start < limit and n_steps < most):
        step()
        n_steps += 1
    wait()
    return time.perf_counter() - start, n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True, choices=["sft-lora", "sft-dora", "orpo-lora", "orpo-dora", "decode"])
    parser.add_argument("--shape", required=True, choices=list(SHAPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--len", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    device = torch.device("cuda" if args.device == "auto" else args.device)
    torch.manual_seed(0)
    figures = decode(args, device) if args.case == "decode" else train(args, device)
    figures["case"] = args.case
    figures["weights"] = "bfloat16" if bnb is None else "nf4"
    figures["peak_bytes"] = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
