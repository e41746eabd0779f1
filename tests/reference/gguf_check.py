"""Reads the program's GGUF files with gguf-py and runs them in llama.cpp, beside transformers.

    .venv/bin/python tests/reference/gguf_check.py target/debug/axismapper MODEL_DIR TEST_JSONL [N]

MODEL_DIR is a small trained model, such as the demo's `merged`; TEST_JSONL holds chat records. Prints, per type, the file's
size, the largest error of a weight relative to its block's largest value, and how many of N answers are transformers' own.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import gguf
import llama_cpp
import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file

# Of the largest value in a block: half a step of the format's grid and the rounding of its scale to f16. The K formats
# minimise the squared error and may clip an extreme value for it: a step of q4_K, from -1 to 1 in 15 steps, is the limit there,
# and the comparison with llama-quantize's bytes below is the sharper one.
LIMITS = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-11, "q4_k_m": 2 / 15}
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def source_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    return f"{NAMES[parts[0]]}.{parts[1]}"


def main() -> None:
    program, model_dir, records = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
    n = int(sys.argv[4]) if len(sys.argv) > 4 else 50
    work = pathlib.Path(tempfile.mkdtemp(prefix="gguf-check-"))
    # Weights that f16 holds exactly, so that llama.cpp can quantize the f16 file into what this program makes of the folder.
    rounded = work / "model"
    shutil.copytree(model_dir, rounded)
    weights = {name: tensor.half().float() for name, tensor in load_file(rounded / "model.safetensors").items()}
    save_file(weights, rounded / "model.safetensors", {"format": "pt"})

    tokenizer = transformers.AutoTokenizer.from_pretrained(rounded)
    model = transformers.AutoModelForCausalLM.from_pretrained(rounded, dtype=torch.float32)
    prompts, expected = [], []
    for line in records.read_text().splitlines()[:n]:
        messages = json.loads(line)["messages"][:-1]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text)["input_ids"]
        prompts.append((text, ids))
        out = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0][len(ids):].tolist()
        expected.append([i for i in out if i not in (tokenizer.eos_token_id, tokenizer.pad_token_id)])

    files = {}
    for kind, limit in LIMITS.items():
        path = files[kind] = work / f"{kind}.gguf"
        subprocess.run([program, "-q", "export", "gguf", "--model", rounded, "--out", path, "--type", kind], check=True, stdout=subprocess.DEVNULL)
        reader = gguf.GGUFReader(path)
        assert reader.get_field("general.architecture").contents() == "qwen2"
        assert reader.get_field("tokenizer.chat_template").contents() == tokenizer.chat_template
        tokens = reader.get_field("tokenizer.ggml.tokens").contents()
        assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        types, worst = {}, 0.0
        assert len(reader.tensors) == len(weights)
        for tensor in reader.tensors:
            want = weights[source_name(tensor.name)].numpy()
            got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(want.shape)
            types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
            if want.ndim == 1:
                assert (got == want).all(), tensor.name
                continue
            block = 32 if want.shape[-1] % 32 == 0 else want.shape[-1]
            scale = numpy.abs(want.reshape(-1, block)).max(axis=1, keepdims=True)
            worst = max(worst, float((numpy.abs(got - want).reshape(-1, block) / numpy.maximum(scale, 1e-9)).max()))
        assert worst <= limit, f"{kind}: a weight is off by {worst}"

        llama = llama_cpp.Llama(str(path), n_ctx=1024, verbose=False, logits_all=False)
        same_ids = same_answers = 0
        for (text, ids), answer in zip(prompts, expected):
            same_ids += llama.tokenize(text.encode(), add_bos=False, special=True) == ids
            got = []
            for token in llama.generate(ids, temp=0, reset=True):
                if token in (tokenizer.eos_token_id, tokenizer.pad_token_id) or len(got) == 64:
                    break
                got.append(token)
            same_answers += got == answer
        size = path.stat().st_size / 1e6
        print(f"{kind}: {size:.2f} MB, {types}, error {worst:.5f}; prompts tokenized alike {same_ids}, answers alike {same_answers} of {len(prompts)}")

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    theirs = work / "theirs.gguf"
    code = llama_cpp.llama_model_quantize(str(files["f16"]).encode(), str(theirs).encode(), parameters)
    assert code == 0
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(files["q4_k_m"]).tensors}
    different = [tensor.name for tensor in gguf.GGUFReader(theirs).tensors
                 if ours[tensor.name].tensor_type != tensor.tensor_type or ours[tensor.name].data.tobytes() != tensor.data.tobytes()]
    print(f"q4_k_m beside llama-quantize: {len(ours) - len(different)} of {len(ours)} tensors have its type and its bytes")
    assert not different, different
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
