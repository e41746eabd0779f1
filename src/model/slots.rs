//! Several adapters on one base: each has a name, at most one is selected, the others wait with what was computed for them.
//!
//! Selecting moves a few handles and computes nothing, so that a server can switch between two tokens.

use std::collections::BTreeMap;

use super::projection::Adapter;
use super::{Error, Qwen2, Result};

/// The name of an adapter that was given none, as in PEFT.
pub(super) const DEFAULT: &str = "default";

/// The adapters of one name, by block and projection; `None` where a module is not adapted.
type Parts = Vec<[Option<Adapter>; 7]>;

/// The adapters of a model that are not selected, and the name of the one that is.
#[derive(Debug, Default)]
pub(super) struct Slots {
    waiting: BTreeMap<String, Parts>,
    selected: Option<String>,
}

impl Qwen2 {
    /// The names of all adapters on the model, sorted.
    pub fn adapter_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.slots.waiting.keys().chain(&self.slots.selected).map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The adapter that the model computes with; `None` is the base alone.
    pub fn selected_adapter(&self) -> Option<&str> {
        self.slots.selected.as_deref()
    }

    /// Computes with the adapter of this name from now on, or with the base alone.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none of that name; the selection stays as it was.
    pub fn select_adapter(&mut self, name: Option<&str>) -> Result<()> {
        if name == self.selected_adapter() {
            return Ok(());
        }
        let parts =
            name.map(|name| self.slots.waiting.remove(name).ok_or_else(|| self.no_adapter(name))).transpose()?;
        let previous = self.exchange(parts);
        let previous_name = std::mem::replace(&mut self.slots.selected, name.map(str::to_owned));
        if let Some(previous_name) = previous_name {
            self.slots.waiting.insert(previous_name, previous);
        }
        Ok(())
    }

    /// Takes an adapter off the model and frees its memory. When it was selected, the base alone is.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none of that name.
    pub fn detach_adapter(&mut self, name: &str) -> Result<()> {
        if self.selected_adapter() == Some(name) {
            self.exchange(None);
            self.slots.selected = None;
            return Ok(());
        }
        match self.slots.waiting.remove(name) {
            Some(_) => Ok(()),
            None => Err(self.no_adapter(name)),
        }
    }

    /// Prepares the layers for a new adapter of this name and selects it; the one selected before waits.
    pub(super) fn open_slot(&mut self, name: &str) -> Result<()> {
        if self.adapter_names().contains(&name) {
            return Err(Error::AdapterTwice { name: name.to_owned() });
        }
        self.select_adapter(None)?;
        self.slots.selected = Some(name.to_owned());
        Ok(())
    }

    /// Forgets every adapter: the base weights are no longer those that they were made for.
    pub(super) fn forget_adapters(&mut self) {
        self.exchange(None);
        self.slots = Slots::default();
    }

    /// Puts an adapter's parts on the layers and gives those that were there.
    fn exchange(&mut self, parts: Option<Parts>) -> Parts {
        let mut parts = parts.unwrap_or_default();
        parts.resize_with(self.blocks.len(), Default::default);
        for (block, parts) in self.blocks.iter_mut().zip(&mut parts) {
            for (projection, part) in block.projections.iter_mut().zip(parts) {
                std::mem::swap(&mut projection.adapter, part);
            }
        }
        parts
    }

    fn no_adapter(&self, name: &str) -> Error {
        let known = self.adapter_names().into_iter().map(str::to_owned).collect();
        Error::NoAdapter { name: name.to_owned(), known }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::adapter::{AdapterFile, Settings, TargetModules};
    use crate::model::{Config, Packed, Segment, add_adapter, attach_adapter, init, new_adapter, quantize};
    use crate::tensor::{Placement, Rng};

    fn model() -> Qwen2 {
        let config = Config {
            vocab_size: 40,
            hidden_size: 24,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 6,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            max_position_embeddings: 64,
        };
        let mut model = init(config, 1, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
        quantize(&mut model).unwrap();
        model
    }

    /// An adapter that changes the answers, on some of the modules.
    fn file(seed: u64, use_dora: bool, target: &str) -> AdapterFile {
        let settings = Settings {
            r: 3,
            lora_alpha: 6.0,
            lora_dropout: 0.0,
            use_dora,
            use_rslora: false,
            target_modules: TargetModules::Names(vec![target.into()]),
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
        };
        let mut model = model();
        new_adapter(&mut model, &settings, seed).unwrap();
        let mut rng = Rng::named(seed, "b");
        let moved = |tensor: &Tensor, rng: &mut Rng| tensor.detach() + rng.normal(&tensor.size(), 0.3).unwrap();
        let tensors = model.parameters().iter().map(|p| (p.name.clone(), moved(&p.tensor, &mut rng))).collect();
        AdapterFile { settings, base_model: None, tensors }
    }

    fn logits(model: &mut Qwen2) -> Tensor {
        let packed = Packed::new(&[3, 1, 7, 9], &[Segment::plain(4)], 40, Device::Cpu).unwrap();
        let hidden = model.hidden_states(&packed).unwrap();
        model.logits(&hidden).unwrap()
    }

    #[test]
    fn a_selected_adapter_computes_as_if_it_were_alone() {
        let alone = |file: AdapterFile| {
            let mut model = model();
            attach_adapter(&mut model, file).unwrap();
            logits(&mut model)
        };
        let (a, b) = (alone(file(1, true, "q_proj")), alone(file(2, false, "down_proj")));
        let base = logits(&mut model());
        assert!(a != b && a != base && b != base);

        let mut model = model();
        add_adapter(&mut model, "a", file(1, true, "q_proj")).unwrap();
        assert_eq!(model.selected_adapter(), None);
        add_adapter(&mut model, "b", file(2, false, "down_proj")).unwrap();
        assert_eq!(model.adapter_names(), ["a", "b"]);
        assert_eq!(logits(&mut model), base);
        for (name, expected) in [("a", &a), ("b", &b), ("a", &a)] {
            model.select_adapter(Some(name)).unwrap();
            assert_eq!(&logits(&mut model), expected, "{name}");
            assert_eq!(model.adapter_names(), ["a", "b"]);
        }
        model.select_adapter(None).unwrap();
        assert_eq!(logits(&mut model), base);
        model.select_adapter(Some("b")).unwrap();
        model.detach_adapter("a").unwrap();
        assert_eq!(logits(&mut model), b);
        model.detach_adapter("b").unwrap();
        assert_eq!((logits(&mut model), model.adapter_names().len()), (base, 0));
    }

    #[test]
    fn names_are_unique_and_a_refused_adapter_leaves_nothing_behind() {
        let mut model = model();
        add_adapter(&mut model, "a", file(1, true, "q_proj")).unwrap();
        model.select_adapter(Some("a")).unwrap();
        let before = logits(&mut model);
        let twice = add_adapter(&mut model, "a", file(2, true, "q_proj")).unwrap_err();
        assert!(matches!(twice, Error::AdapterTwice { .. }), "{twice}");
        let mut short = file(2, true, "q_proj");
        short.tensors.pop_last();
        assert!(add_adapter(&mut model, "b", short).is_err());
        let unknown = model.select_adapter(Some("b")).unwrap_err();
        assert!(matches!(&unknown, Error::NoAdapter { known, .. } if known == &["a"]), "{unknown}");
        assert_eq!((model.selected_adapter(), model.adapter_names()), (Some("a"), vec!["a"]));
        assert_eq!(logits(&mut model), before);
    }
}
