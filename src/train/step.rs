//! Forward and backward of one micro-batch, block by block.
//!
//! Forward keeps each block's input, and within a bound what is worth keeping besides. Backward visits the blocks last to
//! first and computes the rest again: where only adapters are trained, gradients are written out by hand
//! ([`Qwen2::block_backward`]); else the block is run again with a graph. Peak memory is the weights, what is kept, and
//! one block (gradient checkpointing of Chen et al., 1604.06174, one segment a block). Without checkpointing there is no
//! bound, and blocks that need a graph keep theirs.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor, no_grad, with_grad};

use super::batch::Batch;
use super::head::{score, score_and_weigh, score_with_gradient};
use super::placed::Placed;
use super::{Error, Result};
use crate::model::{Keep, Kept, Parameter, Pass, Qwen2};
use crate::tensor::{Place, move_to, read};

/// Accumulated gradients, f32, in the order of the parameters. `None` until a parameter has had one.
#[derive(Debug)]
pub struct Gradients {
    pub tensors: Vec<Option<Tensor>>,
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
}

impl Gradients {
    /// No gradients yet for these parameters.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(parameters: &[Parameter]) -> Result<Self> {
        let place = |parameter: &Parameter| Ok(Place::new(&parameter.tensor.size(), parameter.tensor.device())?);
        Ok(Self {
            tensors: parameters.iter().map(|_| None).collect(),
            places: parameters.iter().map(place).collect::<Result<_>>()?,
            by_name: parameters.iter().enumerate().map(|(idx, parameter)| (parameter.name.clone(), idx)).collect(),
        })
    }

    fn add(&mut self, idx: usize, gradient: &Tensor) -> Result<()> {
        if !gradient.defined() {
            return Ok(());
        }
        let gradient = gradient.f_to_kind(Kind::Float)?;
        match &mut self.tensors[idx] {
            Some(total) => {
                let _ = total.f_add_(&gradient)?;
            }
            empty => *empty = Some(self.places[idx].hold(&gradient)?),
        }
        Ok(())
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Forgets all gradients.
    pub fn clear(&mut self) {
        self.tensors.iter_mut().for_each(|gradient| *gradient = None);
    }

    /// The Euclidean norm over all gradients: `[]` f32, where they are.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn norm(&self) -> Result<Tensor> {
        let norms: Vec<Tensor> =
            self.tensors.iter().flatten().map(|gradient| gradient.f_norm()).collect::<std::result::Result<_, _>>()?;
        if norms.is_empty() {
            return Ok(Tensor::f_zeros([], (Kind::Float, Device::Cpu))?);
        }
        Ok(Tensor::f_stack(&norms, 0)?.f_norm()?)
    }

    /// Scales all gradients down to `max_norm` where `norm`, theirs, is above it
    /// (`torch.nn.utils.clip_grad_norm_`; the factor is computed in f64 and rounded once).
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn clip(&mut self, norm: &Tensor, max_norm: f64) -> Result<()> {
        let norm = norm.f_to_kind(Kind::Double)?.f_add_scalar(1e-6)?;
        let factor = norm.f_full_like(max_norm)?.f_div(&norm)?.f_clamp_max(1.0)?.f_to_kind(Kind::Float)?;
        for gradient in self.tensors.iter_mut().flatten() {
            let _ = gradient.f_mul_(&factor)?;
        }
        Ok(())
    }
}

/// Log-probabilities (nats) of a batch's targets, without dropout or gradient.
///
/// # Errors
/// When a token is outside the vocabulary or memory is short.
pub fn log_probabilities(model: &mut Qwen2, batch: &Batch) -> Result<Vec<f32>> {
    no_grad(|| {
        let placed = Placed::new(model, batch)?;
        let hidden = model.hidden_states_at(&placed.packed, &placed.rows)?;
        let normed = placed.of_pairs(&model.final_norm(&hidden)?)?;
        let logps = score(model, &normed, &placed.targets)?;
        Ok(read(&placed.of_targets(&logps)?)?)
    })
}

/// How much each target's log-probability counts: the loss is `-sum(weight * logp)` to first order.
pub enum Weigh<'a> {
    /// Every target alike.
    Uniform(f64),
    /// From the log-probabilities themselves, `[targets]` f32 on their device, to weights of the same shape.
    ByLogps(&'a dyn Fn(&Tensor) -> Result<Tensor>),
}

/// Memory for what is kept of all blocks beyond their inputs. It saves a third of the matrix products of a step; the
/// result is the same with less.
pub const KEEP_BYTES: usize = 256 << 20;

/// What the forward pass leaves for the backward pass, and where. The result is the same with either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activations {
    /// Keep no more than [`KEEP_BYTES`] beyond the blocks' inputs.
    pub checkpointing: bool,
    /// Leave the blocks' inputs, where they are not part of a graph, in pinned memory of the host.
    pub offloading: bool,
}

impl Default for Activations {
    fn default() -> Self {
        Self { checkpointing: true, offloading: false }
    }
}

/// What the forward pass leaves of a block.
enum Saved {
    /// The input: the block runs again with a graph.
    Input(Tensor),
    /// The input, which is a leaf, and the output with the graph between them.
    Graph(Tensor, Tensor),
    /// What the backward pass by hand needs.
    Kept(Box<Kept>),
}

impl Saved {
    /// Moves a block's input to a device, without waiting for it.
    fn move_input(&mut self, device: Device) -> Result<()> {
        match self {
            Self::Input(input) => *input = move_to(input, device)?,
            Self::Kept(kept) => kept.move_input(device)?,
            Self::Graph(..) => (),
        }
        Ok(())
    }
}

/// Decides how much is kept of each block, so that all of them stay within a bound.
struct Keeper {
    /// What one block takes with [`Keep::Ends`] and [`Keep::All`].
    sizes: Option<[usize; 2]>,
    n_blocks: usize,
    n_whole: usize,
    bound: usize,
}

impl Keeper {
    /// For the first block, of which this is known afterwards.
    fn first(&mut self, sizes: [usize; 2]) -> Keep {
        self.sizes = Some(sizes);
        self.of(sizes)
    }

    /// For the next block; none for the first.
    fn next(&mut self) -> Option<Keep> {
        self.sizes.map(|sizes| self.of(sizes))
    }

    fn of(&mut self, [ends, all]: [usize; 2]) -> Keep {
        if ends * self.n_blocks > self.bound {
            return Keep::Input;
        }
        self.n_whole += 1;
        if ends * self.n_blocks + (all - ends) * self.n_whole <= self.bound { Keep::All } else { Keep::Ends }
    }
}

/// Runs a micro-batch forward and backward and adds the gradients. Gives the targets' log-probabilities (nats).
///
/// `dropout_seed` decides the dropout masks; the forward pass and the recomputation draw the same ones.
///
/// # Errors
/// When a token is outside the vocabulary, memory is short, or a log-probability is not finite.
pub fn backward(
    model: &mut Qwen2,
    parameters: &[Parameter],
    gradients: &mut Gradients,
    batch: &Batch,
    weigh: &Weigh<'_>,
    dropout_seed: u64,
) -> Result<Vec<f32>> {
    let trained = (parameters, gradients);
    let logps = read(&backward_on_device(Activations::default(), model, trained, batch, weigh, dropout_seed)?)?;
    match logps.iter().find(|logp| !logp.is_finite()) {
        Some(logp) => Err(Error::NotFinite { what: "log-probability", value: f64::from(*logp) }),
        None => Ok(logps),
    }
}

/// As [`backward`], for the work to be enqueued only: nothing is read from the device, so nobody has looked yet whether
/// the log-probabilities, `[targets]` f32, are finite.
///
/// # Errors
/// When a token is outside the vocabulary or memory is short.
pub fn backward_on_device(
    activations: Activations,
    model: &mut Qwen2,
    trained: (&[Parameter], &mut Gradients),
    batch: &Batch,
    weigh: &Weigh<'_>,
    dropout_seed: u64,
) -> Result<Tensor> {
    let keep_bytes = if activations.checkpointing { KEEP_BYTES } else { usize::MAX };
    backward_within((keep_bytes, activations), model, trained, batch, weigh, dropout_seed)
}

fn backward_within(
    (keep_bytes, activations): (usize, Activations),
    model: &mut Qwen2,
    (parameters, gradients): (&[Parameter], &mut Gradients),
    batch: &Batch,
    weigh: &Weigh<'_>,
    dropout_seed: u64,
) -> Result<Tensor> {
    model.forget_kept();
    let placed = Placed::new(model, batch)?;
    let Placed { packed, rows, targets, .. } = &placed;
    let n_blocks = model.blocks.len();
    let rotation = model.rotation(&packed.positions)?;
    let pass_of = |idx: usize| Pass {
        rotation: &rotation,
        packed,
        dropout_seed: Some(dropout_seed.wrapping_add(idx as u64)),
        wanted: Some(rows).filter(|_| idx + 1 == n_blocks),
    };
    let by_hand = model.trains_adapters_only();
    let mut saved = Vec::with_capacity(n_blocks);
    let mut keeper = Keeper { sizes: None, n_blocks, n_whole: 0, bound: keep_bytes };
    let embedding = gradients.index_of("model.embed_tokens.weight");
    let needs_input = |idx: usize| idx > 0 || embedding.is_some();
    let last = no_grad(|| -> Result<Tensor> {
        let mut x = model.embed(&packed.ids)?;
        for idx in 0..n_blocks {
            if by_hand {
                let keep = keeper.next();
                let (y, kept) = model.run_block_keeping(idx, &x, keep, pass_of(idx))?;
                let sizes = || [Keep::Ends, Keep::All].map(|keep| kept.size_bytes(keep));
                let keep = keep.unwrap_or_else(|| keeper.first(sizes()));
                saved.push(Saved::Kept(Box::new(kept.reduced(keep))));
                x = y;
            } else if activations.checkpointing {
                let y = model.run_block(idx, &x, pass_of(idx))?;
                saved.push(Saved::Input(std::mem::replace(&mut x, y)));
            } else {
                let leaf = x.f_detach()?.f_set_requires_grad(needs_input(idx))?;
                let y = with_grad(|| model.run_block(idx, &leaf, pass_of(idx)))?;
                x = y.f_detach()?;
                saved.push(Saved::Graph(leaf, y));
            }
            if let (true, Some(saved)) = (activations.offloading, saved.last_mut()) {
                saved.move_input(Device::Cpu)?;
            }
        }
        Ok(x)
    })?;

    let lm_head = if model.head.lm_head.is_some() { gradients.index_of("lm_head.weight") } else { embedding };
    let last = last.f_detach()?.f_set_requires_grad(true)?;
    let normed = model.final_norm(&last)?;
    let hidden = placed.of_pairs(&normed.f_detach()?)?;
    let device = model.placement.device;
    let weights_of = |logps: &Tensor| -> Result<Tensor> {
        let weights = match weigh {
            Weigh::Uniform(weight) => Tensor::f_full([batch.targets.len() as i64], *weight, (Kind::Float, device))?,
            Weigh::ByLogps(weigh) => weigh(&placed.of_targets(logps)?)?,
        };
        placed.sums_of_pairs(&weights)
    };
    let scored = match lm_head {
        Some(_) => {
            let logps = match weigh {
                Weigh::Uniform(_) => Tensor::new(),
                Weigh::ByLogps(_) => score(model, &hidden, targets)?,
            };
            let weights = weights_of(&logps)?;
            score_with_gradient(model, &hidden, targets, &weights)?
        }
        None => score_and_weigh(model, &hidden, targets, weights_of)?,
    };
    let logps = placed.of_targets(&scored.logps)?;
    if let (Some(idx), Some(gradient)) = (lm_head, &scored.grad_weight) {
        gradients.add(idx, gradient)?;
    }

    let mut leaves = vec![last.shallow_clone()];
    let norm = gradients.index_of("model.norm.weight");
    leaves.extend(norm.map(|idx| parameters[idx].tensor.shallow_clone()));
    let mut through_norm = pull_back(&normed, &placed.sums_of_rows(&scored.grad_hidden)?, &leaves)?;
    if let Some(idx) = norm {
        gradients.add(idx, &through_norm[1])?;
    }
    let mut upstream = through_norm.swap_remove(0);
    drop((scored, normed, hidden, last));

    if let Some(last) = saved.last_mut() {
        last.move_input(device)?;
    }
    for idx in (0..n_blocks).rev() {
        let Some(own_saved) = saved.pop() else { break };
        // One block ahead, so that the copy is under way before it is needed.
        if let Some(next) = saved.last_mut() {
            next.move_input(device)?;
        }
        let needs_input = needs_input(idx);
        let own: Vec<usize> = (0..parameters.len()).filter(|&p| parameters[p].block == Some(idx)).collect();
        if own.is_empty() && !needs_input {
            break;
        }
        let pull = |x: Tensor, y: &Tensor| -> Result<(Option<Tensor>, Vec<Tensor>)> {
            let mut leaves: Vec<Tensor> = own.iter().map(|&p| parameters[p].tensor.shallow_clone()).collect();
            leaves.extend(needs_input.then_some(x));
            let mut pulled = pull_back(y, &upstream, &leaves)?;
            Ok((if needs_input { pulled.pop() } else { None }, pulled))
        };
        let (through, pulled) = match own_saved {
            Saved::Kept(kept) => model.block_backward(idx, *kept, &upstream, needs_input, pass_of(idx))?,
            Saved::Graph(x, y) => pull(x, &y)?,
            Saved::Input(input) => {
                let x = input.f_detach()?.f_set_requires_grad(needs_input)?;
                let y = model.run_block(idx, &x, pass_of(idx))?;
                pull(x, &y)?
            }
        };
        upstream = through.unwrap_or(upstream);
        for (p, gradient) in own.into_iter().zip(&pulled) {
            gradients.add(p, gradient)?;
        }
    }
    if let Some(idx) = embedding {
        let table = &parameters[idx].tensor;
        let zeros = Tensor::f_zeros(table.size(), (Kind::Float, table.device()))?;
        let gradient = zeros.f_index_add(0, &packed.ids, &upstream.f_to_kind(Kind::Float)?)?;
        gradients.add(idx, &gradient)?;
    }
    Ok(logps)
}

/// Gradients of `sum(y * upstream)` with respect to `leaves`; of those that `y` does not depend on, undefined tensors.
fn pull_back(y: &Tensor, upstream: &Tensor, leaves: &[Tensor]) -> Result<Vec<Tensor>> {
    let product = y.f_mul(upstream)?.f_sum(y.f_kind()?)?;
    Ok(Tensor::f_run_backward(&[product], leaves, false, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{Settings, TargetModules};
    use crate::config::NllOn;
    use crate::model::{Config, init, new_adapter, quantize};
    use crate::tensor::{Placement, Rng};
    use crate::text::Tokens;
    use crate::train::batch::{PreferenceTokens, Sharing, pack_preferences, pack_records};

    const PLACEMENT: Placement = Placement { device: Device::Cpu, dtype: Kind::Float };

    fn config(tie_word_embeddings: bool) -> Config {
        Config {
            vocab_size: 61,
            hidden_size: 20,
            intermediate_size: 36,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 6,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings,
            max_position_embeddings: 64,
        }
    }

    /// A shape of which weights are whole blocks, for the products and passes of our own in bf16.
    fn wide() -> Config {
        Config { hidden_size: 64, intermediate_size: 128, head_dim: 16, ..config(true) }
    }

    /// A model whose every tensor matters: random biases, norms, B and magnitudes.
    fn model(tie: bool, use_dora: Option<bool>) -> Qwen2 {
        model_with(tie, use_dora, 0.0, "all-linear")
    }

    fn model_with(tie: bool, use_dora: Option<bool>, lora_dropout: f64, targets: &str) -> Qwen2 {
        model_in(Kind::Float, config(tie), use_dora, lora_dropout, targets)
    }

    fn model_in(dtype: Kind, config: Config, use_dora: Option<bool>, lora_dropout: f64, targets: &str) -> Qwen2 {
        let mut model = init(config, 5, Placement { dtype, ..PLACEMENT }).unwrap();
        let mut rng = Rng::named(9, "noise");
        let mut disturb = |tensor: &Tensor, std: f32| {
            let _ = no_grad(|| tensor.shallow_clone().f_add_(&rng.normal(&tensor.size(), std).unwrap()).unwrap());
        };
        model.dense_weights().iter().for_each(|(_, tensor)| disturb(tensor, 0.15));
        let Some(use_dora) = use_dora else {
            model.train_all().unwrap();
            return model;
        };
        quantize(&mut model).unwrap();
        let settings = Settings {
            r: 4,
            lora_alpha: 8.0,
            lora_dropout,
            use_dora,
            use_rslora: false,
            target_modules: TargetModules::Pattern(targets.into()),
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
        };
        new_adapter(&mut model, &settings, 3).unwrap();
        model.parameters().iter().for_each(|parameter| disturb(&parameter.tensor, 0.1));
        model.parameters_changed();
        model
    }

    fn ids(rng: &mut Rng, len: usize) -> Vec<u32> {
        (0..len).map(|_| rng.below(61) as u32).collect()
    }

    fn records() -> Vec<Tokens> {
        let mut rng = Rng::named(2, "records");
        [9usize, 4, 13, 8]
            .iter()
            .map(|&len| Tokens::new(ids(&mut rng, len), (0..len).map(|idx| idx % 3 != 1).collect()))
            .collect()
    }

    /// Loss and gradients by one autograd graph of the whole model.
    fn whole_graph(model: &mut Qwen2, batch: &Batch, weights: &[f32]) -> (Vec<f32>, Vec<Tensor>) {
        let placed = Placed::new(model, batch).unwrap();
        let rotation = model.rotation(&placed.packed.positions).unwrap();
        let mut x = model.embed(&placed.packed.ids).unwrap();
        for idx in 0..model.blocks.len() {
            let wanted = Some(&placed.rows).filter(|_| idx + 1 == model.blocks.len());
            let dropout_seed = Some(7 + idx as u64);
            let pass = Pass { rotation: &rotation, packed: &placed.packed, dropout_seed, wanted };
            x = model.run_block(idx, &x, pass).unwrap();
            // The workspace's buffers are reused by the next block, which one graph over all of them cannot bear.
            model.forget_workspace();
        }
        // Of every target of the batch, whatever is shared.
        let (rows, targets) = (Tensor::from_slice(&batch.rows), Tensor::from_slice(&batch.targets));
        let spread = Tensor::zeros([batch.ids.len() as i64, x.size()[1]], (Kind::Float, Device::Cpu));
        let x = spread.index_copy(0, &placed.rows, &x);
        let hidden = model.final_norm(&x.index_select(0, &rows)).unwrap();
        let logits = hidden.linear(model.head_weight(), None::<&Tensor>);
        let logps = logits.log_softmax(-1, Kind::Float).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let loss = -(&logps * Tensor::from_slice(weights)).sum(Kind::Float);
        let leaves: Vec<Tensor> = model.parameters().iter().map(|p| p.tensor.shallow_clone()).collect();
        (read(&logps.detach()).unwrap(), Tensor::run_backward(&[loss], &leaves, false, false))
    }

    fn check(mut model: Qwen2, batch: &Batch) {
        let mut rng = Rng::named(4, "weights");
        let weights: Vec<f32> = batch.rows.iter().map(|_| rng.next_f32() - 0.3).collect();
        let (expected_logps, expected) = whole_graph(&mut model, batch, &weights);
        let parameters = model.parameters();
        assert!(!parameters.is_empty());
        let weigh = |_: &Tensor| Ok(Tensor::from_slice(&weights));
        let mut by_level: Vec<Vec<Tensor>> = Vec::new();
        let kept = |checkpointing, offloading| Activations { checkpointing, offloading };
        // Nothing kept, the ends, some blocks whole, everything, graphs; inputs in the host's memory.
        for limits in [
            (0, kept(true, false)),
            (40_000, kept(true, false)),
            (100_000, kept(true, true)),
            (usize::MAX, kept(true, false)),
            (usize::MAX, kept(false, false)),
            (usize::MAX, kept(false, true)),
        ] {
            let mut gradients = Gradients::new(&parameters).unwrap();
            let trained = (parameters.as_slice(), &mut gradients);
            let logps = backward_within(limits, &mut model, trained, batch, &Weigh::ByLogps(&weigh), 7).unwrap();
            let logps = read(&logps).unwrap();
            assert!(logps.iter().zip(&expected_logps).all(|(a, b)| (a - b).abs() < 1e-5));
            check_gradients(&parameters, &gradients, &expected);
            by_level.push(gradients.tensors.into_iter().flatten().collect());
        }
        for level in &by_level[1..] {
            assert!(level == &by_level[0], "what is kept changes the gradients");
        }
    }

    fn check_gradients(parameters: &[Parameter], gradients: &Gradients, expected: &[Tensor]) {
        for ((parameter, gradient), expected) in parameters.iter().zip(&gradients.tensors).zip(expected) {
            let scale = expected.abs().max().double_value(&[]);
            let difference = (gradient.as_ref().unwrap() - expected).abs().max().double_value(&[]);
            // The same f32 operations in another order of summation.
            assert!(scale > 1e-6 && difference < 2e-5 * scale.max(0.1), "{}: {difference} of {scale}", parameter.name);
        }
    }

    #[test]
    fn full_fine_tuning_gradients_are_those_of_one_graph() {
        check(model(true, None), &pack_records(&records(), Sharing::All));
        check(model(false, None), &pack_records(&records(), Sharing::All));
    }

    #[test]
    fn adapter_gradients_are_those_of_one_graph() {
        check(model(true, Some(false)), &pack_records(&records(), Sharing::All));
        check(model(false, Some(true)), &pack_records(&records(), Sharing::All));
    }

    #[test]
    fn gradients_under_dropout_are_those_of_one_graph() {
        check(model_with(true, Some(false), 0.3, "all-linear"), &pack_records(&records(), Sharing::All));
        check(model_with(false, Some(true), 0.3, "all-linear"), &pack_records(&records(), Sharing::All));
    }

    #[test]
    fn gradients_of_some_layers_are_those_of_one_graph() {
        for targets in [r".*\.(1|2)\..*(k_proj|down_proj)", r".*\.0\..*(gate_proj|o_proj)", r".*q_proj"] {
            check(model_with(true, Some(true), 0.2, targets), &pack_records(&records(), Sharing::All));
            check(model_with(true, Some(false), 0.0, targets), &pack_records(&records(), Sharing::All));
        }
    }

    #[test]
    fn what_is_kept_stays_within_its_bound() {
        let kept = |bound| {
            let mut keeper = Keeper { sizes: None, n_blocks: 4, n_whole: 0, bound };
            [(); 4].map(|()| keeper.next().unwrap_or_else(|| keeper.first([10, 25])))
        };
        assert_eq!(kept(39), [Keep::Input; 4]);
        assert_eq!(kept(40), [Keep::Ends; 4]);
        assert_eq!(kept(70), [Keep::All, Keep::All, Keep::Ends, Keep::Ends]);
        assert_eq!(kept(100), [Keep::All; 4]);
    }

    #[test]
    fn shared_prompts_give_the_log_probabilities_of_separate_sequences() {
        let mut rng = Rng::named(8, "pairs");
        let mut record = |prompt, chosen, rejected| PreferenceTokens {
            prompt: ids(&mut rng, prompt),
            chosen: ids(&mut rng, chosen),
            rejected: ids(&mut rng, rejected),
        };
        let records = [record(5, 3, 6), record(9, 4, 2), record(5, 4, 4)];
        let (shared, _) = pack_preferences(&records, NllOn::All, Sharing::All);
        check(model(true, Some(true)), &shared);

        let separate = |prompt: &[u32], answer: &[u32], with_prompt: bool| {
            let is_target = (0..prompt.len() + answer.len()).map(|idx| with_prompt || idx >= prompt.len()).collect();
            Tokens::new([prompt, answer].concat(), is_target)
        };
        let apart: Vec<Tokens> = records
            .iter()
            .flat_map(|r| [separate(&r.prompt, &r.chosen, true), separate(&r.prompt, &r.rejected, false)])
            .collect();
        let mut model = model(true, Some(true));
        let shared = log_probabilities(&mut model, &shared).unwrap();
        let apart = log_probabilities(&mut model, &pack_records(&apart, Sharing::All)).unwrap();
        assert_eq!(shared.len(), apart.len());
        assert!(shared.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn what_records_share_gives_the_figures_of_separate_records() {
        let mut rng = Rng::named(10, "shared");
        let (all, some) = (ids(&mut rng, 7), ids(&mut rng, 5));
        let mut record = |begins: &[&[u32]], len: usize| {
            let ids = [begins.concat(), ids(&mut rng, len)].concat();
            // Some targets are shared.
            let is_target = (0..ids.len()).map(|idx| idx == 3 || idx >= begins.concat().len()).collect();
            Tokens::new(ids, is_target)
        };
        let records = [
            record(&[&all, &some], 4),
            record(&[], 6),
            record(&[&all], 9),
            record(&[&all, &some], 3),
            record(&[&all, &some, &[60, 60, 60, 60]], 2),
            record(&[&all, &some, &[60, 60, 60, 60]], 1),
        ];
        let pack = |sharing| pack_records(&records, sharing);
        let (shared, apart) = (pack(Sharing::All), pack(Sharing::Prompts));
        assert_eq!(apart.ids.len() - shared.ids.len(), 4 * 7 + 3 * 5 + 4);
        for (use_dora, dropout) in [(None, 0.0), (Some(false), 0.0), (Some(true), 0.0), (Some(true), 0.3)] {
            check(model_with(true, use_dora, dropout, "all-linear"), &shared);
            let mut model = model_with(true, use_dora, 0.0, "all-linear");
            let parameters = model.parameters();
            let mut run = |batch: &Batch| {
                let mut gradients = Gradients::new(&parameters).unwrap();
                let logps = backward(&mut model, &parameters, &mut gradients, batch, &Weigh::Uniform(0.1), 7).unwrap();
                (logps, gradients)
            };
            let ((expected_logps, expected), (logps, found)) = (run(&apart), run(&shared));
            assert_eq!(logps.len(), expected_logps.len());
            assert!(logps.iter().zip(&expected_logps).all(|(a, b)| (a - b).abs() < 1e-5));
            check_gradients(&parameters, &found, &expected.tensors.into_iter().flatten().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_batch_without_targets_leaves_no_gradient() {
        let record = Tokens::new(vec![1, 2, 3], vec![false; 3]);
        let batch = pack_records([&record], Sharing::All);
        for dtype in [Kind::Float, Kind::BFloat16] {
            for use_dora in [None, Some(false), Some(true)] {
                let mut model = model_in(dtype, wide(), use_dora, 0.3, "all-linear");
                let parameters = model.parameters();
                let mut gradients = Gradients::new(&parameters).unwrap();
                let weigh = Weigh::Uniform(1.0);
                let logps = backward(&mut model, &parameters, &mut gradients, &batch, &weigh, 7).unwrap();
                assert!(logps.is_empty() && log_probabilities(&mut model, &batch).unwrap().is_empty());
                assert_eq!(gradients.norm().unwrap().double_value(&[]), 0.0);
            }
        }
    }

    #[test]
    fn packed_records_score_as_they_do_alone() {
        let mut model = model(false, Some(true));
        let records = records();
        let packed = log_probabilities(&mut model, &pack_records(&records, Sharing::All)).unwrap();
        let alone: Vec<f32> = records
            .iter()
            .flat_map(|r| log_probabilities(&mut model, &pack_records([r], Sharing::All)).unwrap())
            .collect();
        assert!(packed.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
