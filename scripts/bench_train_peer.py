"""The peer of `scripts/bench_train.sh`: TRL's trainers with PEFT and bitsandbytes on the same records, and the model of both.

    bench_train_peer.py model --tokenizer DIR --out DIR        a Qwen2.5-0.5B-shaped folder with random weights
    bench_train_peer.py run --model DIR --data FILE --objective sft|orpo --adapter lora|dora --steps N ...
    bench_train_peer.py table FILE...                           what the runs wrote, side by side
    bench_train_peer.py growth FILE...                          AxisMapper's runs by the tokens of a step

A run prints one JSON object: wall and processor seconds a step without the first one, tokens, peak memory of the process.
Processor seconds compare fairly on a machine that others use too.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import time

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Qwen/Qwen2.5-0.5B-Instruct's config.json.
SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 151645,
    "bos_token_id": 151643,
}


def model(args) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    made = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).to(torch.bfloat16)
    made.save_pretrained(args.out)
    for name in ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]:
        if (args.tokenizer / name).exists():
            shutil.copy(args.tokenizer / name, args.out / name)


def run(args) -> None:
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    dtype = getattr(torch, args.dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    base = AutoModelForCausalLM.from_pretrained(args.model, quantization_config=quantization, dtype=dtype)
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=args.checkpointing)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=args.dropout,
        target_modules=MODULES,
        use_dora=args.adapter == "dora",
        task_type="CAUSAL_LM",
    )
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    rows = rows[: args.steps * args.batch]
    settings = {
        "output_dir": str(args.out),
        "per_device_train_batch_size": args.batch,
        "gradient_accumulation_steps": 1,
        "max_steps": args.steps,
        "learning_rate": 1e-4,
        "optim": "adamw_torch",
        "bf16": dtype == torch.bfloat16,
        "use_cpu": True,
        "gradient_checkpointing": args.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_length": 512,
        "dataloader_pin_memory": False,
    }
    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append((time.perf_counter(), time.process_time()))

    if args.objective == "sft":
        from trl import SFTConfig, SFTTrainer

        data = Dataset.from_list([{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in rows])
        trainer = SFTTrainer(
            model=base,
            args=SFTConfig(**settings, completion_only_loss=True, shuffle_dataset=False),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora,
        )
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    else:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        data = Dataset.from_list([{key: r[key] for key in ["prompt", "chosen", "rejected"]} for r in rows])
        trainer = ORPOTrainer(
            model=base,
            args=ORPOConfig(**settings, beta=0.1, remove_unused_columns=False),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora,
        )
        columns = trainer.train_dataset
        tokens = sum(len(c) + len(r) for c, r in zip(columns["chosen_input_ids"], columns["rejected_input_ids"]))
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.add_callback(Clock())
    trainer.train()
    wall, cpu = ([b - a for a, b in zip(column, column[1:])] for column in zip(*ends))
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(
        json.dumps(
            {
                "who": "peer",
                "objective": args.objective,
                "adapter": args.adapter,
                "dropout": args.dropout,
                "checkpointing": args.checkpointing,
                "dtype": args.dtype,
                "batch": args.batch,
                "steps": args.steps,
                "seconds_a_step": statistics.median(wall),
                "cpu_seconds_a_step": statistics.mean(cpu),
                "tokens_a_step": tokens / args.steps,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            }
        )
    )


def ours(args) -> None:
    """Runs `axismapper train`, once for one step and once for all: the difference is that of the other steps."""
    import subprocess

    is_orpo = args.objective == "orpo"
    rows = args.data.read_text().splitlines()[: args.steps * args.batch]
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / "records.jsonl"
    data.write_text("\n".join(rows) + "\n")
    stage = {
        "model": {"name": str(args.model), "max_seq_length": 512, "load_in_4bit": True, "dtype": "bfloat16"},
        "lora": {
            "r": 16,
            "lora_alpha": 32,
            "lora_dropout": args.dropout,
            "target_modules": MODULES,
            "use_dora": args.adapter == "dora",
        },
        "training": {
            "max_steps": args.steps,
            "per_device_train_batch_size": args.batch,
            "learning_rate": 1e-4,
            "optim": "adamw_torch",
            "save_strategy": "no",
            "logging_steps": 1,
            "gradient_checkpointing": args.checkpointing,
        },
        "data": {"train": str(data), "shuffle": False},
    }
    if is_orpo:
        stage["orpo"] = {"beta": 0.1, "max_prompt_length": 512, "disable_dropout": args.dropout == 0}
    config = args.out / "stage.yaml"
    config.write_text(json.dumps(stage))
    command = [args.binary, "--quiet", "train", "--config", str(config), "--out", str(args.out / "out"), "--device", "cpu"]
    used = []
    for more in [["--set", "training.max_steps=1"], []]:
        shutil.rmtree(args.out / "out", ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        threads = {"OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
        subprocess.run(command + more, check=True, stdout=subprocess.DEVNULL, env=os.environ | threads)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    log = [json.loads(line) for line in (args.out / "out/stage/metrics.jsonl").read_text().splitlines()]
    seconds = [args.batch / row["samples_per_second"] for row in log]
    tokens = [second * row["tokens_per_second"] for second, row in zip(seconds, log)]
    print(
        json.dumps(
            {
                "who": "ours",
                "objective": args.objective,
                "adapter": args.adapter,
                "dropout": args.dropout,
                "checkpointing": args.checkpointing,
                "batch": args.batch,
                "steps": args.steps,
                "seconds_a_step": statistics.median(seconds[1:]),
                "cpu_seconds_a_step": (used[1] - used[0]) / (args.steps - 1),
                "tokens_a_step": sum(tokens) / len(tokens),
                "first_loss": log[0]["loss"],
                "last_loss": log[-1]["loss"],
                "peak_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6,
            }
        )
    )


def table(args) -> None:
    runs = [json.loads(line) for path in args.files for line in path.read_text().splitlines() if line.startswith("{")]
    keys = ["objective", "adapter", "dropout", "checkpointing", "batch"]
    # Runs written before there was a choice were with checkpointing.
    runs = [{"checkpointing": True} | run for run in runs]
    print("| objective | adapter | dropout | checkpointing | processor s/record peer | ours | ratio | wall ratio | peak GB peer | ours | share |")
    print("| --- " * 11 + "|")
    for mine in (run for run in runs if run["who"] == "ours"):
        same = [run for run in runs if run["who"] == "peer" and all(run[key] == mine[key] for key in keys)]
        if not same:
            continue
        peer = same[-1]
        cpu = [run["cpu_seconds_a_step"] / run["batch"] for run in (peer, mine)]
        wall = [run["seconds_a_step"] / run["batch"] for run in (peer, mine)]
        print(
            f"| {mine['objective']} | {mine['adapter']} | {mine['dropout']} | {str(mine['checkpointing']).lower()} "
            f"| {cpu[0]:.2f} | {cpu[1]:.2f} "
            f"| {cpu[0] / cpu[1]:.1f} | {wall[0] / wall[1]:.1f} | {peer['peak_gb']:.2f} | {mine['peak_gb']:.2f} "
            f"| 1/{peer['peak_gb'] / mine['peak_gb']:.1f} |"
        )


def growth(args) -> None:
    runs = [json.loads(line) for path in args.files for line in path.read_text().splitlines() if line.startswith("{")]
    print("| objective | adapter | dropout | records | tokens | s a step | ms a token | peak GB |")
    print("| --- " * 8 + "|")
    mine = (run for run in runs if run["who"] == "ours")
    for run in sorted(mine, key=lambda run: (run["objective"], run["adapter"], run["dropout"], run["batch"])):
        print(
            f"| {run['objective']} | {run['adapter']} | {run['dropout']} | {run['batch']} | {run['tokens_a_step']:.0f} "
            f"| {run['seconds_a_step']:.2f} | {1000 * run['seconds_a_step'] / run['tokens_a_step']:.2f} "
            f"| {run['peak_gb']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, action in [("model", model), ("run", run), ("ours", ours)]:
        command = commands.add_parser(name)
        command.set_defaults(action=action)
        command.add_argument("--out", type=pathlib.Path, required=True)
        if name == "model":
            command.add_argument("--tokenizer", type=pathlib.Path, required=True)
            continue
        command.add_argument("--model", type=pathlib.Path, required=True)
        command.add_argument("--data", type=pathlib.Path, required=True)
        command.add_argument("--objective", choices=["sft", "orpo"], required=True)
        command.add_argument("--adapter", choices=["lora", "dora"], required=True)
        command.add_argument("--dropout", type=float, default=0.05)
        command.add_argument("--no-checkpointing", dest="checkpointing", action="store_false")
        command.add_argument("--batch", type=int, default=4)
        command.add_argument("--steps", type=int, default=4)
        command.add_argument("--threads", type=int, default=os.cpu_count())
        if name == "ours":
            command.add_argument("--binary", required=True)
        else:
            command.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    for name, action in [("table", table), ("growth", growth)]:
        shown = commands.add_parser(name)
        shown.set_defaults(action=action)
        shown.add_argument("files", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    args.action(args)


if __name__ == "__main__":
    main()
