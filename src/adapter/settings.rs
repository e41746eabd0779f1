//! What an adapter is: rank, scale, targets, as in PEFT's `adapter_config.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Error, Result};

/// The part of PEFT's `LoraConfig` that decides the computation. Fields written by PEFT that do not are ignored.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Settings {
    pub r: i64,
    pub lora_alpha: f64,
    #[serde(default)]
    pub lora_dropout: f64,
    #[serde(default)]
    pub use_dora: bool,
    #[serde(default)]
    pub use_rslora: bool,
    pub target_modules: TargetModules,
    /// Module name or regular expression to rank.
    #[serde(default)]
    pub rank_pattern: Patterns<i64>,
    /// Module name or regular expression to alpha.
    #[serde(default)]
    pub alpha_pattern: Patterns<f64>,
}

/// Module names or regular expressions with a value each, in the order of the file: the first that matches decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<V>(Vec<(String, V)>);

/// Which modules are adapted: names matched as path suffixes, or one regular expression over whole paths.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum TargetModules {
    Pattern(String),
    Names(Vec<String>),
}

impl TargetModules {
    /// Whether the module of this path (`model.layers.0.self_attn.q_proj`) is adapted. `all-linear` takes every one.
    ///
    /// # Errors
    /// [`Error::BadPattern`] when the regular expression does not parse.
    pub fn matches(&self, path: &str) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names
                .iter()
                .any(|name| path == name || path.strip_suffix(name.as_str()).is_some_and(|p| p.ends_with('.')))),
            Self::Pattern(pattern) if pattern == "all-linear" => Ok(true),
            Self::Pattern(pattern) => Ok(whole_match("target_modules", pattern)?.is_match(path)),
        }
    }
}

impl Settings {
    /// The rank of a module: the first matching pattern's, else `r`.
    ///
    /// # Errors
    /// [`Error::BadPattern`] or [`Error::BadRank`].
    pub fn rank_of(&self, path: &str) -> Result<i64> {
        let rank = self.rank_pattern.first_match("rank_pattern", path)?.unwrap_or(self.r);
        if rank < 1 { Err(Error::BadRank { module: path.to_owned(), rank }) } else { Ok(rank) }
    }

    /// The factor on `B A x`: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA (2312.03732).
    ///
    /// # Errors
    /// [`Error::BadPattern`] or [`Error::BadRank`].
    pub fn scaling_of(&self, path: &str) -> Result<f64> {
        let alpha = self.alpha_pattern.first_match("alpha_pattern", path)?.unwrap_or(self.lora_alpha);
        let rank = self.rank_of(path)? as f64;
        Ok(if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank })
    }
}

impl<V> Default for Patterns<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V, const N: usize> From<[(String, V); N]> for Patterns<V> {
    fn from(patterns: [(String, V); N]) -> Self {
        Self(patterns.into())
    }
}

impl<V> From<BTreeMap<String, V>> for Patterns<V> {
    fn from(patterns: BTreeMap<String, V>) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl<V> FromIterator<(String, V)> for Patterns<V> {
    fn from_iter<I: IntoIterator<Item = (String, V)>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl<V: Copy> Patterns<V> {
    /// PEFT's rule (`get_pattern_key`): the first pattern for which `(.*\.)?(PATTERN)$` matches from the start of the path.
    fn first_match(&self, key: &'static str, path: &str) -> Result<Option<V>> {
        for (pattern, value) in &self.0 {
            if whole_match(key, &format!(r"(.*\.)?({pattern})"))?.is_match(path) {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

impl<V: Serialize> Serialize for Patterns<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (pattern, value) in &self.0 {
            map.serialize_entry(pattern, value)?;
        }
        map.end()
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Patterns<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Patterns<V>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a map of module names or patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    patterns.push(entry);
                }
                Ok(Patterns(patterns))
            }

            fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
                Ok(Patterns::default())
            }
        }
        deserializer.deserialize_any(InOrder(PhantomData))
    }
}

fn whole_match(key: &'static str, pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|source| Error::BadPattern {
        key,
        pattern: pattern.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            use_dora: false,
            use_rslora: false,
            target_modules: TargetModules::Names(vec!["q_proj".into(), "self_attn.o_proj".into()]),
            rank_pattern: [("layers.1.self_attn.q_proj".to_owned(), 4), (r"v_\w+".to_owned(), 2)].into(),
            alpha_pattern: [("q_proj".to_owned(), 8.0)].into(),
        }
    }

    #[test]
    fn names_match_whole_path_parts() {
        let targets = settings().target_modules;
        assert!(targets.matches("model.layers.3.self_attn.q_proj").unwrap());
        assert!(targets.matches("model.layers.3.self_attn.o_proj").unwrap());
        assert!(!targets.matches("model.layers.3.self_attn.xq_proj").unwrap());
        assert!(!targets.matches("model.layers.3.mlp.o_proj").unwrap());
        assert!(TargetModules::Pattern(r".*\.mlp\.\w+".into()).matches("model.layers.3.mlp.up_proj").unwrap());
    }

    #[test]
    fn patterns_give_rank_and_scale_of_single_modules() {
        let mut settings = settings();
        let of =
            |settings: &Settings, path: &str| (settings.rank_of(path).unwrap(), settings.scaling_of(path).unwrap());
        assert_eq!(of(&settings, "model.layers.1.self_attn.q_proj"), (4, 2.0));
        assert_eq!(of(&settings, "model.layers.11.self_attn.q_proj"), (16, 0.5));
        assert_eq!(of(&settings, "model.layers.0.self_attn.v_proj"), (2, 16.0));
        settings.use_rslora = true;
        assert_eq!(of(&settings, "model.layers.0.mlp.up_proj"), (16, 8.0));
    }

    #[test]
    fn the_first_pattern_of_the_file_decides() {
        let read = |patterns: &str| -> Settings {
            let text =
                format!(r#"{{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {patterns}}}"#);
            let settings: Settings = serde_json::from_str(&text).unwrap();
            let written = serde_json::to_string(&settings).unwrap();
            assert!(written.contains(&format!(r#""rank_pattern":{}"#, patterns.replace(": ", ":").replace(", ", ","))));
            settings
        };
        let rank = |patterns: &str| read(patterns).rank_of("model.layers.1.self_attn.q_proj").unwrap();
        assert_eq!(rank(r#"{"q_proj": 5, "layers.1.self_attn.q_proj": 7}"#), 5);
        assert_eq!(rank(r#"{"layers.1.self_attn.q_proj": 7, "q_proj": 5}"#), 7);
        assert_eq!(rank(r#"{"z.*": 9, "q_proj": 5}"#), 5);
    }
}
