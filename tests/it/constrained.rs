//! Constrained decoding: every answer valid, every valid answer possible, whatever the tokenizer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axismapper::codes::{Code, Release};
use axismapper::decode::{
    Advance, Batch, Choice, Constraint, Form, Limits, Request, Rules, Sampling, Settings, Walk, alternatives,
    generate_codes,
};
use axismapper::model::{Packed, Qwen2, Segment};
use axismapper::stop::Stop;
use axismapper::tensor::Rng;
use axismapper::text::Tokenizer;
use proptest::prelude::*;
use rayon::prelude::*;

use super::golden::fixture;
use super::small_model::small_model;

fn builtin() -> Arc<Release> {
    Arc::new(Release::builtin().unwrap())
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&fixture("tokenizer")).unwrap()
}

/// A release of these codes only.
fn release_of(codes: &[&str]) -> Arc<Release> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codes.json");
    let object: BTreeMap<&str, &str> = codes.iter().map(|code| (*code, "some condition")).collect();
    std::fs::write(&path, serde_json::to_string(&object).unwrap()).unwrap();
    Arc::new(Release::load(&path).unwrap())
}

/// One answer from random logits: its text, and the tokens that it took, the end token included.
///
/// Taking the best of independent random logits is taking any choice with equal probability; `favour` takes the first
/// choice that often instead, so that one code is spelled again and again.
fn random_answer(
    constraint: &Constraint,
    spelled: &[Option<Vec<u8>>],
    max_tokens: usize,
    favour: f32,
    rng: &mut Rng,
    choices: &mut Vec<Choice>,
) -> (String, usize) {
    let mut walk = constraint.start();
    let mut text = Vec::new();
    for n_left in (1..=max_tokens).rev() {
        constraint.choices(&walk, n_left, choices);
        assert!(!choices.is_empty(), "no way on after `{}`", String::from_utf8_lossy(&text));
        let idx = if rng.next_f32() < favour { 0 } else { rng.below(choices.len() as u64) as usize };
        if constraint.advance(&mut walk, choices[idx]) == Advance::Ended {
            return (String::from_utf8(text).unwrap(), max_tokens - n_left + 1);
        }
        text.extend(spelled[constraint.token(choices[idx]) as usize].as_ref().unwrap());
    }
    panic!("`{}` does not end within {max_tokens} tokens", String::from_utf8_lossy(&text));
}

/// Codes of an answer that is compliant: canonical, billable, distinct, at most `max_codes`.
fn check_answer(release: &Release, text: &str, max_codes: usize) -> Vec<Code> {
    let codes: Vec<Code> = text.split(", ").map(|part| Code::parse(part).unwrap()).collect();
    assert!(codes.iter().all(|code| release.is_billable(*code)), "{text}");
    assert!((1..=max_codes).contains(&codes.len()), "{text}");
    assert!((1..codes.len()).all(|idx| !codes[..idx].contains(&codes[idx])), "{text}");
    codes
}

#[test]
fn a_million_random_generations_are_all_valid_and_all_end() {
    let (release, tokenizer) = (builtin(), tokenizer());
    let rules = Rules { max_codes: 4, excludes1: false };
    let constraint = Constraint::new(Arc::clone(&release), &tokenizer, rules).unwrap();
    let spelled = tokenizer.token_bytes();
    let n_codes: Vec<[usize; 5]> = (0..100u64)
        .into_par_iter()
        .map(|chunk| {
            let mut rng = Rng::named(chunk, "random generations");
            let (mut choices, mut n_codes) = (Vec::new(), [0; 5]);
            for n in 0..10_000 {
                // From room enough to the least that an answer may be given.
                let max_tokens = constraint.min_tokens() + rng.below(constraint.max_tokens() as u64) as usize;
                let favour = [0.0, 0.9, 0.97][n % 3];
                let (text, _) = random_answer(&constraint, &spelled, max_tokens, favour, &mut rng, &mut choices);
                n_codes[check_answer(&release, &text, 4).len()] += 1;
            }
            n_codes
        })
        .collect();
    let total: Vec<usize> = (0..5).map(|n| n_codes.iter().map(|chunk| chunk[n]).sum()).collect();
    assert_eq!(total.iter().sum::<usize>(), 1_000_000);
    assert!(total[1..].iter().all(|&n| n > 10_000), "answers of every length are wanted: {total:?}");
}

#[test]
fn answers_held_to_excludes1_hold_no_excluded_pair() {
    let (release, tokenizer) = (builtin(), tokenizer());
    let spelled = tokenizer.token_bytes();
    let mut rng = Rng::named(1, "excludes1");
    let mut n_conflicts = [0, 0];
    for excludes1 in [false, true] {
        let rules = Rules { max_codes: 6, excludes1 };
        let constraint = Constraint::new(Arc::clone(&release), &tokenizer, rules).unwrap();
        let mut choices = Vec::new();
        for _ in 0..300 {
            let max_tokens = constraint.max_tokens();
            let (text, _) = random_answer(&constraint, &spelled, max_tokens, 0.9, &mut rng, &mut choices);
            let codes = check_answer(&release, &text, 6);
            let pairs = (0..codes.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
            n_conflicts[usize::from(excludes1)] +=
                pairs.filter(|&(a, b)| release.excludes1(codes[a], codes[b]).is_some()).count();
        }
    }
    assert!(n_conflicts[0] > 0 && n_conflicts[1] == 0, "{n_conflicts:?}");
}

/// Every answer that a constraint allows, with the number of ways to spell it.
fn all_answers(constraint: &Constraint, spelled: &[Option<Vec<u8>>], n_left: usize) -> BTreeMap<String, u32> {
    fn follow(
        constraint: &Constraint,
        spelled: &[Option<Vec<u8>>],
        walk: &Walk,
        text: &mut Vec<u8>,
        n_left: usize,
        found: &mut BTreeMap<String, u32>,
    ) {
        let mut choices = Vec::new();
        constraint.choices(walk, n_left, &mut choices);
        assert!(n_left > 0 && !choices.is_empty(), "no way on after `{}`", String::from_utf8_lossy(text));
        for choice in choices {
            let mut next = walk.clone();
            if constraint.advance(&mut next, choice) == Advance::Ended {
                *found.entry(String::from_utf8(text.clone()).unwrap()).or_default() += 1;
                let codes: Vec<String> = constraint.codes(&next).iter().map(Code::to_string).collect();
                assert_eq!(codes.join(", ").as_bytes(), text.as_slice());
                continue;
            }
            let len = text.len();
            text.extend(spelled[constraint.token(choice) as usize].as_ref().unwrap());
            follow(constraint, spelled, &next, text, n_left - 1, found);
            text.truncate(len);
        }
    }
    let mut found = BTreeMap::new();
    follow(constraint, spelled, &constraint.start(), &mut Vec::new(), n_left, &mut found);
    found
}

/// Every list of one to `max_codes` distinct codes.
fn all_lists(codes: &[&str], max_codes: usize) -> BTreeSet<String> {
    let mut lists: Vec<Vec<&str>> = vec![vec![]];
    let mut found = BTreeSet::new();
    for _ in 0..max_codes {
        lists = lists
            .iter()
            .flat_map(|list| {
                let others = codes.iter().filter(|code| !list.contains(code));
                others.map(|code| [list.as_slice(), &[*code]].concat()).collect::<Vec<_>>()
            })
            .collect();
        found.extend(lists.iter().map(|list| list.join(", ")));
    }
    found
}

const FEW_CODES: [&str; 5] = ["A00.0", "A00.1", "I10", "I10.9", "B20"];

/// A vocabulary of the bytes of `FEW_CODES` and these tokens.
fn vocabulary(tokens: &[String]) -> Vec<Option<Vec<u8>>> {
    let bytes = "A0.1I9B2, x".bytes().map(|byte| Some(vec![byte]));
    let special = [None, Some(Vec::new())];
    bytes.chain(special).chain(tokens.iter().map(|token| Some(token.clone().into_bytes()))).collect()
}

fn check_language(tokens: &[String], max_codes: usize) {
    let release = release_of(&FEW_CODES);
    let spelled = vocabulary(tokens);
    let rules = Rules { max_codes, excludes1: false };
    let constraint = Constraint::from_vocabulary(release, &spelled, &[11], rules).unwrap();
    let found = all_answers(&constraint, &spelled, constraint.max_tokens());
    let found: BTreeSet<String> = found.into_keys().collect();
    assert_eq!(found, all_lists(&FEW_CODES, max_codes), "with the tokens {tokens:?}");
}

#[test]
fn tokens_that_span_codes_lose_no_answer_and_allow_no_other() {
    let spanning = [
        "A00",
        "00.",
        ".0, A",
        "0, I",
        ", ",
        " I",
        "10",
        ", I10",
        "I10, A00.1, B20",
        "10.9,",
        "B20, B20",
        ", x",
        "I10, I10",
    ];
    let spanning: Vec<String> = spanning.map(str::to_owned).to_vec();
    check_language(&spanning, 2);
    check_language(&[], 2);
    // More codes allowed than there are: the last one can only be followed by the end.
    check_language(&spanning[..4], 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_language_is_the_same_for_any_vocabulary(
        cuts in prop::collection::vec((0usize..60, 1usize..9), 0..12),
        max_codes in 1usize..3,
    ) {
        // Tokens cut at random out of answers.
        let text = "A00.0, I10, I10.9, B20, A00.1, A00.0, B20, I10.9, A00.1, I10, I10.9";
        let tokens: Vec<String> = cuts.iter().map(|&(start, len)| text[start..start + len].to_owned()).collect();
        check_language(&tokens, max_codes);
    }
}

#[test]
fn an_answer_uses_its_last_tokens_to_end() {
    let release = release_of(&FEW_CODES);
    let spelled = vocabulary(&[]);
    let constraint =
        Constraint::from_vocabulary(release, &spelled, &[11], Rules { max_codes: 3, excludes1: false }).unwrap();
    assert_eq!(constraint.min_tokens(), 6);
    let found = all_answers(&constraint, &spelled, 6);
    assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), all_lists(&FEW_CODES, 1));
    let ten = all_answers(&constraint, &spelled, 11);
    assert!(ten.contains_key("I10, A00.0") && !ten.contains_key("A00.0, I10"), "{ten:?}");
}

#[test]
fn a_vocabulary_without_a_needed_byte_is_refused() {
    let spelled: Vec<Option<Vec<u8>>> = vocabulary(&[]).into_iter().filter(|t| *t != Some(b"9".to_vec())).collect();
    let error = Constraint::from_vocabulary(release_of(&FEW_CODES), &spelled, &[11], Rules::default()).unwrap_err();
    assert!(error.to_string().contains("no token for `9`"), "{error}");
}

/// Logits over the whole vocabulary after `ids`, by a pass over all of them.
fn next_logits(model: &mut Qwen2, ids: &[u32]) -> Vec<f32> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let packed = Packed::new(&ids, &[Segment::plain(ids.len())], model.config.vocab_size, tch::Device::Cpu).unwrap();
    let hidden = model.hidden_states(&packed).unwrap();
    let logits = model.logits(&hidden.narrow(0, ids.len() as i64 - 1, 1)).unwrap();
    Vec::<f32>::try_from(logits.reshape([-1])).unwrap()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
}

fn prompts(n: usize, vocab_size: u64) -> Vec<Vec<u32>> {
    let mut rng = Rng::named(6, "prompts");
    (0..n).map(|n| (0..3 + (n * 5) % 11).map(|_| rng.below(vocab_size) as u32).collect()).collect()
}

#[test]
fn a_batch_answers_and_scores_as_step_by_step_decoding_does() {
    let (release, tokenizer) = (builtin(), tokenizer());
    let rules = Rules { max_codes: 3, excludes1: false };
    let constraint = Arc::new(Constraint::new(Arc::clone(&release), &tokenizer, rules).unwrap());
    let mut model = small_model(tokenizer.vocab_size() as i64, 192, 3);
    let prompts = prompts(9, 600);
    let limits = Limits { max_new_tokens: constraint.max_tokens(), batch_size: 4, end_tokens: tokenizer.stop_ids() };
    let mut answers = vec![None; prompts.len()];
    let done = |idx: usize, answer| answers[idx] = Some(answer);
    generate_codes(&mut model, &prompts, &limits, &constraint, &Stop::default(), done).unwrap();
    let mut texts = BTreeSet::new();
    for (prompt, answer) in prompts.iter().zip(answers) {
        let answer = answer.unwrap();
        let text: String = answer.codes.iter().map(|scored| scored.code.to_string()).collect::<Vec<_>>().join(", ");
        let ids: Vec<u32> = answer.tokens.iter().map(|token| token.id).collect();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        check_answer(&release, &text, 3);
        // Again, with full logits and a walk of its own.
        let (mut walk, mut so_far, mut log_prob) = (constraint.start(), prompt.clone(), 0.0);
        let mut by_code = vec![0.0; answer.codes.len()];
        let mut choices = Vec::new();
        loop {
            let logits = next_logits(&mut model, &so_far);
            constraint.choices(&walk, limits.max_new_tokens - (so_far.len() - prompt.len()), &mut choices);
            let offered: Vec<f32> = choices.iter().map(|c| logits[constraint.token(*c) as usize]).collect();
            let best = (0..offered.len()).max_by(|&a, &b| offered[a].total_cmp(&offered[b])).unwrap();
            let step = log_softmax(&offered)[best];
            log_prob += step;
            match constraint.advance(&mut walk, choices[best]) {
                Advance::Ended => break,
                Advance::Spelled(codes) => codes.for_each(|idx| by_code[idx] += step),
            }
            so_far.push(constraint.token(choices[best]));
        }
        assert_eq!(&so_far[prompt.len()..], ids);
        // A few dozen f32 log-probabilities, each exact to about 1e-5.
        assert!((answer.probability.ln() - log_prob).abs() < 1e-3);
        for (scored, log_prob) in answer.codes.iter().zip(by_code) {
            assert!((scored.probability.ln() - log_prob).abs() < 1e-3, "{}", scored.code);
        }
        assert!(answer.codes.iter().all(|scored| scored.probability >= answer.probability * 0.999));
        texts.insert(text);
    }
    assert!(texts.len() > 3, "answers that differ are wanted: {texts:?}");
}

#[test]
fn alternatives_are_the_likeliest_answers_of_all() {
    let release = release_of(&FEW_CODES);
    let spelled = vocabulary(&["I10".to_owned(), ", ".to_owned(), " A00".to_owned()]);
    let constraint =
        Constraint::from_vocabulary(release, &spelled, &[11], Rules { max_codes: 2, excludes1: false }).unwrap();
    let mut model = small_model(spelled.len() as i64, 192, 3);
    let max_new_tokens = constraint.max_tokens();
    for prompt in prompts(3, spelled.len() as u64) {
        // Every way to spell every answer, with its probability.
        let mut ways: Vec<(f64, String)> = Vec::new();
        let mut open = vec![(constraint.start(), prompt.clone(), 0.0f64)];
        while let Some((walk, ids, log_prob)) = open.pop() {
            let mut choices = Vec::new();
            constraint.choices(&walk, max_new_tokens - (ids.len() - prompt.len()), &mut choices);
            let logits = next_logits(&mut model, &ids);
            let offered: Vec<f32> = choices.iter().map(|c| logits[constraint.token(*c) as usize]).collect();
            for (choice, step) in choices.iter().zip(log_softmax(&offered)) {
                let mut next = walk.clone();
                if constraint.advance(&mut next, *choice) == Advance::Ended {
                    let codes: Vec<String> = constraint.codes(&next).iter().map(Code::to_string).collect();
                    ways.push((log_prob + step, codes.join(", ")));
                } else {
                    open.push((next, [ids.as_slice(), &[constraint.token(*choice)]].concat(), log_prob + step));
                }
            }
        }
        let total: f64 = ways.iter().map(|(log_prob, _)| log_prob.exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "the answers' probabilities sum to {total}");
        ways.sort_by(|a, b| b.0.total_cmp(&a.0));
        // A beam as wide as the language is exact.
        let found = alternatives(&mut model, &constraint, &prompt, max_new_tokens, ways.len()).unwrap();
        assert_eq!(found.len(), ways.len());
        for (alternative, (log_prob, _)) in found.iter().zip(&ways) {
            assert!((alternative.probability.ln() - log_prob).abs() < 1e-3);
        }
        let narrow = alternatives(&mut model, &constraint, &prompt, max_new_tokens, 3).unwrap();
        let text: Vec<String> = narrow[0].codes.iter().map(|scored| scored.code.to_string()).collect();
        assert_eq!(text.join(", "), ways[0].1);
        assert!(narrow.len() == 3 && narrow.windows(2).all(|pair| pair[0].probability >= pair[1].probability));
    }
}

#[test]
fn what_is_decoded_beside_changes_nothing() {
    let (release, tokenizer) = (builtin(), tokenizer());
    let constraint = Arc::new(Constraint::new(release, &tokenizer, Rules { max_codes: 2, excludes1: false }).unwrap());
    let mut model = small_model(tokenizer.vocab_size() as i64, 192, 3);
    let requests: Vec<Request> = prompts(8, 600)
        .into_iter()
        .zip(0..)
        .map(|(prompt, seed)| Request {
            prompt,
            max_new_tokens: constraint.max_tokens(),
            sampling: Sampling { temperature: [0.0, 1.5][seed as usize % 2], top_p: 0.95, seed },
            form: if seed < 5 { Form::Codes } else { Form::Free },
            log_probs: seed == 6,
            n_top: 2,
        })
        .collect();
    let settings = |batch_size| Settings {
        batch_size,
        end_tokens: tokenizer.stop_ids(),
        constraint: Some(Arc::clone(&constraint)),
    };
    let mut run = |batch_size: usize, arrivals: &[usize], cancelled: Option<u64>| {
        let mut batch = Batch::new(settings(batch_size));
        let mut answers = BTreeMap::new();
        let mut arrivals = arrivals.iter();
        loop {
            if let Some(&idx) = arrivals.next() {
                batch.submit(&model, idx as u64, requests[idx].clone()).unwrap();
            }
            for event in batch.step(&mut model).unwrap() {
                if let Some(answer) = event.answer {
                    let ids: Vec<u32> = answer.tokens.iter().map(|token| token.id).collect();
                    answers.insert(event.key, (ids, answer.reason));
                }
            }
            if let (1, Some(key)) = (answers.len(), cancelled) {
                batch.cancel(key).unwrap();
            }
            if batch.is_idle() && arrivals.len() == 0 {
                return answers;
            }
        }
    };
    let alone: BTreeMap<_, _> = (0..8).flat_map(|idx| run(1, &[idx], None)).collect();
    assert_eq!(alone.len(), 8);
    // One arrives at each step, in another order, and each leaves when it is done.
    assert_eq!(run(3, &[7, 2, 5, 0, 1, 3, 6, 4], None), alone);
    let mut rest = alone.clone();
    rest.remove(&4);
    assert_eq!(run(8, &[6, 4, 0, 1, 2, 3, 5, 7], Some(4)), rest);
}

/// Texts one slip away from billable codes, and the headers: none is a code of the release.
fn near_misses(release: &Release) -> Vec<String> {
    let headers = release.nodes().iter().map(|node| node.code.to_string());
    let slips = release.billable().iter().step_by(7).flat_map(|billable| {
        let code = billable.code.to_string();
        let (cut, last) = code.split_at(code.len() - 1);
        let next = char::from(last.as_bytes()[0] + 1);
        [
            format!("{code}0"),
            format!("{code}A"),
            cut.to_owned(),
            format!("{cut}{next}"),
            code.replace('.', ""),
            code.to_lowercase(),
            format!(" {code}"),
            format!("{code},"),
            format!("{code}, "),
        ]
    });
    let is_code = |text: &String| Code::parse(text).is_ok_and(|code| release.is_billable(code));
    headers.chain(slips).filter(|text| !is_code(text)).collect()
}

#[test]
fn the_exported_expression_accepts_the_billable_codes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codes.regex");
    let args = ["codes", "export", "--format", "regex", "--max-codes", "1", "--out", path.to_str().unwrap()];
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_axismapper")).args(args).status().unwrap();
    assert!(status.success());
    let one = std::fs::read_to_string(&path).unwrap();
    assert!(one.len() < 60_000 && one.is_ascii() && !one.contains(char::is_whitespace), "{} bytes", one.len());
    let regex = regex::RegexBuilder::new(&format!("^(?:{one})$")).size_limit(1 << 26).build().unwrap();
    let release = builtin();
    assert!(release.billable().iter().all(|billable| regex.is_match(&billable.code.to_string())));
    let misses = near_misses(&release);
    assert!(misses.len() > 60_000, "{}", misses.len());
    let accepted: Vec<&String> = misses.iter().filter(|text| regex.is_match(text)).collect();
    assert!(accepted.is_empty(), "{accepted:?}");
}
