//! The JSON schemas for editors, held to the parsers: the same keys, the same defaults, and nothing accepted that a
//! parser refuses.

use std::collections::BTreeSet;
use std::path::PathBuf;

use axismapper::config::{self, Error, KEYS, parse};
use axismapper::data::build::BuildSettings;
use serde_json::{Map, Value, json};

fn file(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&file(name)).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// Checks a value against the part of JSON Schema that our schemas use; a word that is not known here is a fault.
fn faults(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    let number = value.as_f64();
    for (word, rule) in schema.as_object().unwrap() {
        let limit = rule.as_f64();
        let in_limit = |holds: fn(f64, f64) -> bool| number.zip(limit).is_none_or(|(x, limit)| holds(x, limit));
        let length = value.as_array().map(Vec::len).or(value.as_str().map(|text| text.chars().count()));
        let holds = match word.as_str() {
            "$schema" | "title" | "description" | "default" | "examples" => true,
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| has_type(value, name.as_str().unwrap())),
                name => has_type(value, name.as_str().unwrap()),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "const" => rule == value,
            "not" => !faults(rule, value, at).is_empty(),
            "anyOf" => rule.as_array().unwrap().iter().any(|schema| faults(schema, value, at).is_empty()),
            "minimum" => in_limit(|x, limit| x >= limit),
            "maximum" => in_limit(|x, limit| x <= limit),
            "exclusiveMinimum" => in_limit(|x, limit| x > limit),
            "exclusiveMaximum" => in_limit(|x, limit| x < limit),
            "minItems" | "minLength" => length.is_none_or(|n| n as f64 >= limit.unwrap()),
            "maxLength" => length.is_none_or(|n| n as f64 <= limit.unwrap()),
            "required" => value
                .as_object()
                .is_none_or(|map| rule.as_array().unwrap().iter().all(|key| map.contains_key(key.as_str().unwrap()))),
            "items" => {
                let items = value.as_array().into_iter().flatten();
                found.extend(items.enumerate().flat_map(|(idx, item)| faults(rule, item, &format!("{at}[{idx}]"))));
                true
            }
            "properties" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = rule.get(key) {
                        found.extend(faults(schema, value, &format!("{at}.{key}")));
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = schema.get("properties");
                let others = value.as_object().into_iter().flatten();
                for (key, value) in others.filter(|(key, _)| known.is_none_or(|known| known.get(*key).is_none())) {
                    match rule {
                        Value::Bool(false) => found.push(format!("{at}.{key} is not known")),
                        schema => found.extend(faults(schema, value, &format!("{at}.{key}"))),
                    }
                }
                true
            }
            other => panic!("the schema has `{other}`, which this test does not know"),
        };
        if !holds {
            found.push(format!("{at}: {value} breaks {word} {rule}"));
        }
    }
    found
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|x| x.fract() == 0.0),
        other => panic!("the schema has the type `{other}`"),
    }
}

/// The keys of a map.
fn keys(map: &Value) -> BTreeSet<&str> {
    map.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_schemas_have_the_keys_of_the_parsers() {
    let stage = schema("stage.schema.json");
    let sections: BTreeSet<&str> = KEYS.iter().map(|(section, _)| *section).collect();
    assert_eq!(keys(&stage["properties"]), sections);
    for (section, known) in KEYS {
        let found = keys(&stage["properties"][section]["properties"]);
        assert_eq!(found, known.iter().copied().collect(), "{section}");
    }
    let data = schema("data.schema.json");
    let mut defaults = serde_json::to_value(BuildSettings::default()).unwrap();
    defaults["records"] = json!([]);
    same_keys(&data, &defaults, "data");
}

/// Every object of the defaults has the keys that the schema gives it, and the reverse.
fn same_keys(schema: &Value, value: &Value, at: &str) {
    let Value::Object(map) = value else { return };
    assert_eq!(keys(&schema["properties"]), map.keys().map(String::as_str).collect(), "{at}");
    for (key, value) in map {
        same_keys(&schema["properties"][key], value, &format!("{at}.{key}"));
    }
}

/// Each default in a schema with the value that the parser resolves a key to.
fn same_defaults(schema: &Value, resolved: &Value, at: &str) -> usize {
    if resolved.is_null() {
        // A section that is left out has no settings.
        return 0;
    }
    let mut n = 0;
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let (value, at) = (&resolved[key], format!("{at}.{key}"));
        n += same_defaults(schema, value, &at);
        let Some(default) = schema.get("default") else { continue };
        assert!(faults(schema, default, &at).is_empty(), "{at}: the default breaks its own schema");
        let is_same = match (default.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => default == value,
        };
        assert!(is_same, "{at}: the schema says {default}, the parser {value}");
        n += 1;
    }
    n
}

#[test]
fn the_defaults_are_those_of_the_parsers() {
    let least = "model: {name: m}\ndata: {train: t}\nlora: {}\n";
    let resolve = |text: &str| serde_json::to_value(parse("s", "s.yaml", text, &[]).unwrap().stage).unwrap();
    let mut resolved = resolve(least);
    // Preference training has a learning rate of its own; this one's other settings are its defaults.
    resolved["orpo"] = resolve(&format!("{least}orpo: {{}}\n"))["orpo"].clone();
    // The parser folds the two into one setting.
    resolved["training"]["save_strategy"] = json!("steps");
    assert!(same_defaults(&schema("stage.schema.json"), &resolved, "stage") > 35);
    let mut resolved = serde_json::to_value(BuildSettings::default()).unwrap();
    resolved["records"] = json!([]);
    assert!(same_defaults(&schema("data.schema.json"), &resolved, "data") > 25);
}

#[test]
fn the_shipped_files_are_valid_and_name_their_schema() {
    let stages = ["dora.yaml", "qlora.yaml", "orpo.yaml", "continual.yaml", "smoke.yaml"];
    for (name, schema_name) in
        stages.map(|name| (name, "stage.schema.json")).into_iter().chain([("data.yaml", "data.schema.json")])
    {
        let text = file(name);
        assert_eq!(text.lines().next().unwrap(), format!("# yaml-language-server: $schema={schema_name}"), "{name}");
        let found = faults(&schema(schema_name), &yaml(&text), name);
        assert!(found.is_empty(), "{found:?}");
        // Every setting has a word to its reader.
        for line in text.lines().filter(|line| line.starts_with("  ") && line.contains(": ")) {
            assert!(line.contains('#') || line.contains("target_modules"), "{name}: {line}");
            assert!(line.chars().count() <= 120, "{name}: {line}");
        }
    }
    // Between them two files show every key there is, set or behind a #.
    let shown = file("dora.yaml") + &file("orpo.yaml");
    for key in KEYS.iter().flat_map(|(_, keys)| *keys) {
        let is_shown = shown.lines().any(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key}:")));
        assert!(is_shown, "`{key}` is in neither file");
    }
}

/// The shown value behind a # is the default.
#[test]
fn what_stands_behind_a_mark_is_the_default() {
    for (name, extra) in [("dora.yaml", ""), ("orpo.yaml", "")] {
        let text = file(name);
        let mut section = String::new();
        let mut n = 0;
        for line in text.lines() {
            if let Some(key) = line.strip_suffix(':').filter(|line| !line.starts_with([' ', '#'])) {
                section = key.to_owned();
            }
            let Some((key, rest)) = line.strip_prefix("  # ").and_then(|line| line.split_once(": ")) else { continue };
            let shown = yaml(rest.split(" #").next().unwrap().trim());
            let default = schema("stage.schema.json")["properties"][&section]["properties"][key]["default"].clone();
            let is_same = match key {
                // No number of steps.
                "max_steps" => shown == json!(-1) && default.is_null(),
                _ => shown == default || shown.as_f64().is_some() && shown.as_f64() == default.as_f64(),
            };
            assert!(is_same, "{name}{extra}: {section}.{key} shows {shown}, the default is {default}");
            n += 1;
        }
        assert!(n > 0, "{name} shows no default");
    }
}

#[test]
fn what_a_schema_accepts_the_parser_accepts() {
    let stage = schema("stage.schema.json");
    let tries = [
        json!(null),
        json!(true),
        json!(false),
        json!(-1),
        json!(0),
        json!(1),
        json!(7),
        json!(0.5),
        json!(1.5),
        json!(-0.1),
        json!(""),
        json!("no"),
        json!("steps"),
        json!("wandb"),
        json!("none"),
        json!("all-linear"),
        json!([]),
        json!(["q_proj"]),
        json!(["wandb"]),
        json!([3]),
        json!({}),
        json!({"q_proj": 4}),
        json!({"q_proj": 0}),
        json!({"q_proj": "x"}),
    ];
    let mut n_accepted = 0;
    for (section, known) in KEYS {
        for key in *known {
            let property = &stage["properties"][section]["properties"][key];
            let named = property.get("enum").and_then(Value::as_array).cloned().unwrap_or_default();
            for value in tries.iter().chain(&named) {
                if !faults(property, value, key).is_empty() {
                    continue;
                }
                n_accepted += 1;
                let mut root = json!({"model": {"name": "m"}, "data": {"train": "t", "validation": "v"}, "lora": {},
                    "training": {"eval_strategy": "steps", "predict_with_generate": true}});
                if *section == "orpo" {
                    root["orpo"] = json!({});
                }
                root[section][key] = value.clone();
                let path = format!("{section}.{key}");
                match parse("s", "s.yaml", &root.to_string(), &[]) {
                    // An absent or empty text is no name; the schema asks for one by `required` and `minLength`.
                    Err(Error::Faults { faults, .. }) => {
                        let about: Vec<_> = faults
                            .iter()
                            .filter(|fault| fault.key == path && fault.message.contains("found"))
                            .collect();
                        assert!(about.is_empty(), "the schema accepts {path}: {value}, the parser says {about:?}");
                    }
                    Err(other) => panic!("{other}"),
                    Ok(config::Loaded { warnings, .. }) => {
                        assert!(warnings.is_empty(), "{path}: {value}: {warnings:?}")
                    }
                }
            }
        }
    }
    assert!(n_accepted > 120, "{n_accepted}");
}

#[test]
fn what_is_wrong_is_marked_in_the_editor() {
    let stage = schema("stage.schema.json");
    let sound = yaml(&file("dora.yaml"));
    for (section, key, value) in [
        ("model", "max_seq_lenght", json!(3)),
        ("model", "dtype", json!("float16")),
        ("training", "epochs", json!(3)),
        ("training", "max_steps", json!(0)),
        ("training", "learning_rate", json!(-1)),
        ("lora", "lora_dropout", json!(1)),
        ("lora", "rank_pattern", json!({"q_proj": 0})),
        ("data", "train", json!(["x"])),
    ] {
        let mut wrong = sound.clone();
        wrong[section][key] = value;
        assert_eq!(faults(&stage, &wrong, "stage").len(), 1, "{section}.{key}: {:?}", faults(&stage, &wrong, "stage"));
    }
    let without: Map<String, Value> = sound
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| *key != "data")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    assert_eq!(faults(&stage, &Value::Object(without), "stage").len(), 1);
}
