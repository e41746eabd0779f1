//! The tokenizer, the chat template and the loss mask against transformers (fixture: `tests/reference`).

use std::path::{Path, PathBuf};

use axismapper::text::{Error, Message, Role, Tokenizer, Tokens, train_bpe};
use serde_json::Value;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&fixture()).unwrap()
}

fn golden(section: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    golden[section].as_array().unwrap().clone()
}

fn ids_of(case: &Value) -> Vec<u32> {
    ids_in(&case["ids"])
}

fn ids_in(ids: &Value) -> Vec<u32> {
    serde_json::from_value(ids.clone()).unwrap()
}

fn mask_of(tokens: &Tokens) -> String {
    tokens.is_target.iter().map(|&is_target| if is_target { '1' } else { '0' }).collect()
}

fn chats() -> Vec<Vec<Message>> {
    golden("chats").iter().map(|case| serde_json::from_value(case["messages"].clone()).unwrap()).collect()
}

#[test]
fn chats_have_the_ids_and_the_mask_of_transformers() {
    let tokenizer = tokenizer();
    let cases = golden("chats");
    assert!(cases.len() > 50 && cases.iter().any(|case| ids_of(case).len() > 4000));
    for (case, messages) in cases.iter().zip(chats()) {
        let tokens = tokenizer.encode_chat(&messages).unwrap();
        assert_eq!(tokens.ids, ids_of(case), "{messages:?}");
        assert_eq!(mask_of(&tokens), case["mask"], "{messages:?}\n{}", tokenizer.mark_targets(&tokens).unwrap());
    }
}

#[test]
fn prompts_end_in_the_header_of_the_answer() {
    let tokenizer = tokenizer();
    for ((chat, prompt), messages) in golden("chats").iter().zip(golden("prompts")).zip(chats()) {
        let tokens = tokenizer.encode_prompt(&messages).unwrap();
        assert_eq!(tokens.ids, [ids_of(chat), ids_in(&prompt["after"])].concat(), "{messages:?}");
        assert_eq!(tokens.n_targets(), 0);
        assert!(tokenizer.decode_with_special(&tokens.ids).unwrap().ends_with("<|im_start|>assistant\n"));
    }
}

#[test]
fn texts_have_the_ids_of_transformers_and_come_back() {
    let tokenizer = tokenizer();
    for case in golden("texts") {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids_of(&case), "{text:?}");
        assert_eq!(tokenizer.decode_with_special(&ids_of(&case)).unwrap(), case["decoded"], "{text:?}");
    }
}

#[test]
fn a_trained_tokenizer_is_that_of_the_python_library() {
    let corpus = std::fs::read_to_string(fixture().join("corpus.txt")).unwrap();
    let trained = train_bpe(corpus.lines(), 700).unwrap();
    let dir = tempfile::tempdir().unwrap();
    trained.save(dir.path()).unwrap();
    let read = |path: &Path| -> Value { serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() };
    let (ours, theirs) = (read(&dir.path().join("tokenizer.json")), read(&fixture().join("tokenizer.json")));
    assert_eq!(ours["model"]["vocab"], theirs["model"]["vocab"]);
    assert_eq!(ours["model"]["merges"], theirs["model"]["merges"]);
    assert_eq!(ours["added_tokens"], theirs["added_tokens"]);
    assert_eq!(ours["normalizer"], theirs["normalizer"]);
    assert_eq!(ours["pre_tokenizer"], theirs["pre_tokenizer"]);
    assert_eq!(ours["decoder"]["type"], theirs["decoder"]["type"]);
    assert_eq!(trained.vocab_size(), 700);
    assert_eq!([trained.pad_id(), trained.eos_id()], [697, 699]);

    let again = train_bpe(corpus.lines(), 700).unwrap();
    let other = tempfile::tempdir().unwrap();
    again.save(other.path()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(std::fs::read(dir.path().join(file)).unwrap(), std::fs::read(other.path().join(file)).unwrap());
    }
    let loaded = Tokenizer::load(dir.path()).unwrap();
    for messages in chats() {
        assert_eq!(loaded.encode_chat(&messages).unwrap(), tokenizer().encode_chat(&messages).unwrap());
    }
    assert!(matches!(train_bpe(corpus.lines(), 258), Err(Error::SmallVocabulary { least: 259, .. })));
}

#[test]
fn an_answer_alone_is_the_target_of_a_preference() {
    let tokenizer = tokenizer();
    let prompt = [Message::user("a"), Message::assistant("not this"), Message::user("b")];
    let tokens = tokenizer.encode_answer(&prompt, &[Message::assistant("I10")]).unwrap();
    let marked = tokenizer.mark_targets(&tokens).unwrap();
    assert!(marked.ends_with("b<|im_end|>\n<|im_start|>assistant\n[[I10<|im_end|>]]\n"), "{marked}");
    assert_eq!(marked.matches("[[").count(), 1);
    assert_eq!(tokens.ids[..tokens.first_target()], tokenizer.encode_prompt(&prompt).unwrap().ids);
}

#[test]
fn plain_strings_get_one_end_token() {
    let tokenizer = tokenizer();
    let marked = |tokens: Tokens| tokenizer.mark_targets(&tokens).unwrap();
    assert_eq!(marked(tokenizer.encode_text("I10 x").unwrap()), "[[I10 x<|im_end|>]]");
    assert_eq!(marked(tokenizer.encode_text("I10<|im_end|>").unwrap()), "[[I10<|im_end|>]]");
    assert_eq!(marked(tokenizer.encode_completion("codes:", " I10").unwrap()), "codes:[[ I10<|im_end|>]]");
    // The token that holds the end of one and the start of the other is a target.
    assert_eq!(marked(tokenizer.encode_completion("codes: ", "I10").unwrap()), "codes:[[ I10<|im_end|>]]");
    assert_eq!(marked(tokenizer.encode_completion("q", " I10<|im_end|>").unwrap()), "q[[ I10<|im_end|>]]");
    assert_eq!(marked(tokenizer.encode_continuation("q", " I10").unwrap()), "q[[ I10]]");
    assert_eq!(tokenizer.encode_continuation("q", "").unwrap().n_targets(), 0);
}

#[test]
fn an_over_long_chat_loses_the_middle_of_its_last_question_only() {
    let tokenizer = tokenizer();
    let question: String = (0..200).map(|n| format!("word{n} ")).collect();
    let messages = [
        Message::system("codes only"),
        Message::user("first"),
        Message::assistant("I10"),
        Message::user(&question),
        Message::assistant("S82.201A, V18.4XXA"),
    ];
    let whole = tokenizer.encode_chat(&messages).unwrap();
    let mut cut = whole.clone();
    assert_eq!(cut.fit(whole.len()).unwrap(), 0);
    let max = whole.len() - 100;
    assert_eq!(cut.fit(max).unwrap(), 100);
    assert_eq!(cut.len(), max);
    assert_eq!(cut.n_targets(), whole.n_targets());
    let text = tokenizer.mark_targets(&cut).unwrap();
    assert!(text.contains("user\nword0 word1 ") && text.contains("word199 <|im_end|>"), "{text}");
    assert!(text.contains("[[I10<|im_end|>]]") && text.contains("[[S82.201A, V18.4XXA<|im_end|>]]"), "{text}");

    let error = whole.clone().fit(20).unwrap_err();
    assert!(matches!(error, Error::TooLong { max_seq_length: 20, .. }), "{error}");
}

/// A content that looks like a mark, or repeats another turn, is still found where it is.
#[test]
fn contents_are_found_whatever_they_hold() {
    let tokenizer = tokenizer();
    let odd = "\u{e000}:1\u{e001}assistant\nI10<|im_end|>\n";
    let messages = [Message::user(odd), Message::assistant("I10"), Message::user("I10"), Message::assistant("user")];
    let text = tokenizer.mark_targets(&tokenizer.encode_chat(&messages).unwrap()).unwrap();
    assert_eq!(text.matches("[[").count(), 2, "{text}");
    assert!(text.ends_with("assistant\n[[user<|im_end|>]]\n"), "{text}");
    assert!(text.contains("assistant\n[[I10<|im_end|>]]\n<|im_start|>user\nI10<|im_end|>"), "{text}");
}

#[test]
fn templates_that_trim_are_followed_and_those_that_rewrite_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let with = |template: &str| {
        tokenizer().save(dir.path()).unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        Tokenizer::load(dir.path()).unwrap()
    };
    let messages = [Message::user(" q "), Message::assistant(" I10 ")];
    let trimming = with("{% for m in messages %}{{ m.role }}: {{ m.content | trim }}<|im_end|>\n{% endfor %}");
    let tokens = trimming.encode_chat(&messages).unwrap();
    assert_eq!(trimming.mark_targets(&tokens).unwrap(), "user: q<|im_end|>\nassistant:[[ I10<|im_end|>]]\n");
    let rewriting = with("{% for m in messages %}{{ m.content | replace('1', '2') }}{% endfor %}");
    assert!(matches!(rewriting.encode_chat(&messages), Err(Error::ContentRewritten)));
}

#[test]
fn a_folder_that_is_no_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Tokenizer::load(dir.path()).err().unwrap().to_string().contains("tokenizer.json"));
    tokenizer().save(dir.path()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<eos>"}"#).unwrap();
    let error = Tokenizer::load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("names the eos_token `<eos>`"), "{error}");
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "<|im_end|>"}}"#).unwrap();
    let plain = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(plain.pad_id(), plain.eos_id());
    assert!(matches!(plain.encode_chat(&[Message::new(Role::User, "x")]), Err(Error::NoTemplate)));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(Tokenizer::load(dir.path()), Err(Error::BadTokenizer { .. })));
}
