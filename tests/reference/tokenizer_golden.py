"""Makes tests/fixtures/tokenizer: a small byte-level BPE tokenizer with Qwen's pipeline, trained by the Python
`tokenizers`, and golden.json with token ids and assistant masks of chat records as transformers gives them, what a prompt has after
those ids, and ids of the texts alone.

Run it from the repository root: python3 tests/reference/tokenizer_golden.py
Made with transformers 5.23.0, tokenizers 0.23.3.
"""

import gzip
import json
import random
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]
OUT = ROOT / "tests/fixtures/tokenizer"
TEMPLATE = (ROOT / "assets/qwen2.5/chat_template.jinja").read_text()
VOCAB_SIZE = 700
# Longer texts stand in the chats only.
MAX_TEXT = 2000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen's template with the assistant's content and end token marked, which makes transformers return a mask.
MARKED = TEMPLATE.replace(
    """        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}""",
    """        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.role == 'assistant' %}
            {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
        {%- else %}
            {{- message.content + '<|im_end|>' }}
        {%- endif %}
        {{- '\\n' }}""",
)
assert MARKED != TEMPLATE


def corpus():
    """Descriptions from the tabular list, a line each, with some codes and other scripts."""
    xml = gzip.open(ROOT / "assets/icd10cm/icd10cm-tabular-April-1-2026.xml.gz", "rt", encoding="utf-8").read()
    lines = re.findall(r"<name>([^<]+)</name>\s*<desc>([^<]+)</desc>", xml)
    lines = random.Random(7).sample(lines, 500)
    return [f"{name} {text}" for name, text in lines] + ["Knöchel, ankle", "髋部骨折", "naïve café", "🦴 bone"]


def train(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def save(tokenizer, texts):
    OUT.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(OUT / "tokenizer.json"))
    added = {str(tokenizer.token_to_id(token)): {
        "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True,
    } for token in SPECIAL}
    config = {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
        "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "errors": "replace", "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (OUT / "corpus.txt").write_text("\n".join(texts) + "\n")


def turns(*contents, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ["user", "assistant"]
    return messages + [{"role": roles[idx % 2], "content": text} for idx, text in enumerate(contents)]


def chats():
    rng = random.Random(11)
    words = "ankle left initial encounter café 骨 🦴 of, with without 12 S82.201A \n I10 naïve e\u0301 type".split(" ")
    cases = [
        turns("Fell off a bike, broke the right shin.", "S82.201A, V18.4XXA", system="Answer with ICD-10-CM codes only."),
        turns("High blood pressure", "I10"),
        turns("a", "b", "c", "d", "e", "f", system="s"),
        turns("Knöchelbruch, naïve café", "S82.899A — é, e\u0301"),
        turns("髋部骨折了", "S72.001A 骨"),
        turns("🦴🤕 broken 👩‍⚕️", "🦴 S82 👩‍⚕️"),
        turns("x", "\nI10"),
        turns("x", "\n\n  I10\n"),
        turns("x", " I10 "),
        turns("  \n", "\t"),
        turns("x", ""),
        turns("says <|im_end|> aloud", "and <|im_start|> too"),
        turns("ends in a newline\n", "I10\n", "again\n\n", "\r\nI11.9"),
        turns("don't WE'LL 123456 1,234.5 a_b ...!!\n\n\nend", "M54.50"),
        turns("line\u2028separator \u00a0nbsp \u200bzero", "R52\u00a0"),
        turns("last turn is the user's", "I10", "and now?"),
        turns("long " * 400, "J45.909, " * 50),
        turns("x", "I10", system=""),
        # Look-alikes of special tokens: whole, torn, in another case, in every turn, and right at the edges.
        turns("<|im_end|>\n<|im_start|>assistant\nI10<|im_end|>\n", "<|im_start|>", system="<|endoftext|> s <|im_end|>"),
        turns("<|im_end| > <|im_end |im_end|> <|IM_END|> <im_end> <|im_sta", "rt|>I10<|im_", "end|>", "<|endoftext|>"),
        turns("<tool_call>{\"name\": 1}</tool_call> {{ messages }} {% endfor %}", "{{- '<|im_end|>' }}"),
        # Combining marks: composed, reordered, without a base, across the edge of a turn; Hangul; singletons.
        turns("\u0301a\u0323\u0302 q\u0307\u0323 \u1ea5\u0323", "\u0301I10\u0308", system="e\u0301\u0301"),
        turns("\u1112\u1161\u11ab\u1100\u116e\u11a8 한국", "\u212b \u2126 \u00c5 \ufb01 \u00bd \u0958"),
        # Right to left, with marks of direction; digits of other scripts; Indic; Thai; old scripts.
        turns("كسر في الساق اليسرى ١٢٣", "\u202bS82.202A\u202c", "שבר בשוק \u05e9\u05c1\u05b0", "\u200fI10\u200e"),
        turns("टखने में दर्द १२", "M25.57 ९", "ปวดข้อเท้า", "\U00010330\U0001d7d8 \U000e0041"),
        # Control characters, NUL and byte order mark among them, and every kind of white space and line end.
        turns("".join(map(chr, range(32))) + "\x7f\x80\x85\x9f", "\0I10\0", system="\x1b[31mred\x1b[0m"),
        turns("\ufeffbom", "I10\ufeff", "\u00a0\u00a0 \u2003\u3000x\u00a0", "\u00a0 R52 \u2009\u00a0"),
        turns("a\r\n\r\nb\rc\n\r\x0b\x0cd\u2029e ", "\r\nI10\r\n", " \n \t\n", "\r", system=" \n codes \n\n"),
        # Emoji in sequences; private use; what is no character; the last code point.
        turns("👩🏽‍🚀🏳️‍🌈1️⃣🇩🇪🇩", "🫀I50.9\ufe0f", "\ue000\uf8ff\ufffd\ufffe\uffff", "\U0010ffff"),
        # Empty contents in every place, and turns that are out of turn.
        turns("", "", "", "I10", "", "", system=""),
        [{"role": "assistant", "content": "I10"}, {"role": "assistant", "content": "R54"}],
        [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"},
         {"role": "system", "content": "d"}, {"role": "assistant", "content": "e"}, {"role": "user", "content": "f"}],
        turns(*(f"turn {n} " for n in range(60)), system="many"),
        # Very long: a question of thousands of tokens, and an answer in many lines.
        turns("Sprained left ankle, 髋 " * 220 + " " * 300 + "é" * 100, "S93.402A, I10\n" * 120, system="Codes only."),
    ]
    for _ in range(20):
        n_turns = rng.randint(1, 5)
        texts = [" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(n_turns)]
        cases.append(turns(*texts, system=rng.choice([None, "Codes only.", "résumé"])))
    return cases


def ids_of(encoded):
    return list(encoded["input_ids"])


def main():
    texts = corpus()
    save(train(texts), texts)
    tokenizer = AutoTokenizer.from_pretrained(OUT)
    golden = {"chats": [], "prompts": [], "texts": []}
    for messages in chats():
        plain = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        masked = tokenizer.apply_chat_template(
            messages, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        assert ids_of(plain) == ids_of(masked), messages
        mask = "".join(map(str, masked["assistant_masks"]))
        golden["chats"].append({"messages": messages, "ids": ids_of(plain), "mask": mask})
        prompt = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
        assert ids_of(prompt)[:len(ids_of(plain))] == ids_of(plain), messages
        golden["prompts"].append({"after": ids_of(prompt)[len(ids_of(plain)):]})
    texts = [message["content"] for case in golden["chats"] for message in case["messages"]]
    for text in [text for text in dict.fromkeys(texts) if len(text) < MAX_TEXT]:
        ids = tokenizer(text)["input_ids"]
        golden["texts"].append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    # One case a line: small, and a change shows as a line.
    sections = [f'"{name}": [\n' + ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases) + "\n]"
                for name, cases in golden.items()]
    (OUT / "golden.json").write_text("{" + ",\n".join(sections) + "}\n")


if __name__ == "__main__":
    main()
