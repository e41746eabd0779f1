//! One linear layer: a frozen or trained weight, an optional bias, an optional adapter.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};

use super::Result;
use super::projection_backward::Keeping;
use crate::adapter::{Lora, dora_norm, dora_squares, row_norms_squared};
use crate::quant::{FewRows, Nf4, linear, multiply_each, rows};
use crate::tensor::{Place, Rng, Shelf};

/// The most rows that an NF4 weight is multiplied by as it is. A pass over the weight takes four rows and costs less than twice
/// its expansion, which a dense product only follows; from three passes on the dense product is the cheaper one.
const MAX_FUSED_ROWS: i64 = 8;

/// The fewest rows for which products of the weight as it is, which take 32 at a time, are the faster ones.
const MIN_MANY_ROWS: i64 = 16;

/// The weight of a linear layer, `[out, in]`.
#[derive(Debug)]
pub enum Weight {
    /// In the model's type; trained in full fine-tuning.
    Dense(Tensor),
    /// Frozen in 4 bits, expanded for each use.
    Nf4(Nf4),
}

/// A linear layer of a block.
#[derive(Debug)]
pub struct Projection {
    /// Path below the block: `self_attn.q_proj`.
    pub name: &'static str,
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
    pub adapter: Option<Adapter>,
}

/// An adapter with what DoRA needs about the frozen weight.
#[derive(Debug)]
pub struct Adapter {
    pub lora: Lora,
    /// Row sums of squares of the frozen weight `[out]`, for DoRA.
    weight_squared: Option<Tensor>,
    /// `||W + s B A||` `[out]` of the current parameters, until they change.
    pub(super) norm: Option<Tensor>,
    norm_place: Place,
}

impl Adapter {
    /// Remembers DoRA's norm until the parameters change.
    pub(super) fn keep_norm(&mut self, norm: &Tensor) -> Result<()> {
        self.norm = Some(self.norm_place.hold(norm)?);
        Ok(())
    }

    /// What a product with the weight needs to compute DoRA's norm on the way, where it is missing: `2 s B^T`, and the squares of
    /// [`dora_squares`].
    pub(super) fn missing_norm(&self) -> Result<Option<[Tensor; 2]>> {
        Ok(match (&self.norm, &self.weight_squared) {
            (None, Some(squared)) => {
                let twice_b =
                    self.lora.lora_b.f_transpose(0, 1)?.f_contiguous()?.f_mul_scalar(2.0 * self.lora.scaling)?;
                Some([twice_b, dora_squares(&self.lora, squared)?])
            }
            _ => None,
        })
    }
}

/// A frozen weight ready for products without gradient.
#[derive(Debug)]
pub(super) enum Matrix<'a> {
    /// `[out, in]` in the type of the activations.
    Expanded(Tensor),
    /// Multiplied as it is, bf16 activations only.
    Packed(&'a Nf4),
}

/// Memory that all blocks share.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Into these NF4 weights are expanded, one for each layer of a block. A weight taken from it is valid until the same layer of
    /// another block is visited.
    buffers: BTreeMap<&'static str, Tensor>,
    /// For what a forward pass keeps.
    pub(super) shelf: Shelf,
}

impl Workspace {
    fn expand(&mut self, name: &'static str, weight: &Nf4, kind: Kind) -> Result<Tensor> {
        let is_fit = |buffer: &Tensor| buffer.size() == weight.shape() && buffer.kind() == kind;
        if !self.buffers.get(name).is_some_and(is_fit) {
            self.buffers.insert(name, Tensor::f_empty(weight.shape(), (kind, weight.device()))?);
        }
        match self.buffers.get_mut(name) {
            Some(buffer) => {
                weight.dequantize_into(buffer)?;
                Ok(buffer.shallow_clone())
            }
            None => Ok(weight.dequantize(kind)?),
        }
    }
}

impl Projection {
    /// The weight in `kind`, `[out, in]`: itself when dense, else expanded into the workspace.
    ///
    /// # Errors
    /// When memory is short.
    pub fn weight(&self, kind: Kind, workspace: &mut Workspace) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Ok(weight.shallow_clone()),
            Weight::Nf4(weight) => workspace.expand(self.name, weight, kind),
        }
    }

    /// Puts an adapter on the layer.
    ///
    /// # Errors
    /// When memory is short.
    pub fn attach(&mut self, lora: Lora, kind: Kind, workspace: &mut Workspace) -> Result<()> {
        let weight_squared = match lora.magnitude {
            Some(_) => Some(no_grad(|| -> Result<Tensor> { Ok(row_norms_squared(&self.weight(kind, workspace)?)?) })?),
            None => None,
        };
        let norm_place = match &weight_squared {
            Some(squared) => Place::new(&squared.size(), squared.device())?,
            None => Place::default(),
        };
        self.adapter = Some(Adapter { lora, weight_squared, norm: None, norm_place });
        Ok(())
    }

    /// Forgets DoRA's norm: the adapter's parameters have changed.
    pub fn parameters_changed(&mut self) {
        if let Some(adapter) = &mut self.adapter {
            adapter.norm = None;
        }
    }

    /// Computes DoRA's norm where the parameters have changed since.
    fn refresh_norm(&mut self, weight: &Tensor) -> Result<()> {
        if let Some(adapter) = &mut self.adapter
            && let (None, Some(squared)) = (&adapter.norm, &adapter.weight_squared)
        {
            let norm = dora_norm(&adapter.lora, weight, squared)?;
            adapter.keep_norm(&norm)?;
        }
        Ok(())
    }

    /// As [`Projection::refresh_norm`], where the weight is not expanded: it is for this, once for an optimizer step.
    pub(super) fn require_norm(&mut self, kind: Kind, workspace: &mut Workspace) -> Result<()> {
        if self.adapter.as_ref().is_some_and(|adapter| adapter.norm.is_none() && adapter.weight_squared.is_some()) {
            let weight = self.weight(kind, workspace)?;
            self.refresh_norm(&weight)?;
        }
        Ok(())
    }

    /// Whether products with `x` `[n, in]` take the weight as it is.
    fn takes_packed(&self, x: &Tensor) -> bool {
        let is_many = x.size().first().is_some_and(|&n| n >= MIN_MANY_ROWS);
        match &self.weight {
            Weight::Nf4(weight) => is_many && rows::can_pass(&[x]) && weight.can_multiply_many(),
            Weight::Dense(_) => false,
        }
    }

    /// Whether the adapter's parameters are in a graph now: what is made of them requires a gradient, too.
    fn makes_graph(&self) -> Result<bool> {
        Ok(match &self.adapter {
            Some(adapter) => adapter.lora.lora_a.f_narrow(0, 0, 1)?.requires_grad(),
            None => false,
        })
    }

    /// Expands the weight, and brings DoRA's norm up to date, unless products with `x` `[n, in]` take the weight as it is. Those
    /// compute a missing norm on the way.
    pub(super) fn prepare(&mut self, x: &Tensor, workspace: &mut Workspace) -> Result<Option<Tensor>> {
        if self.takes_packed(x) {
            return Ok(None);
        }
        let weight = self.weight(x.f_kind()?, workspace)?;
        self.refresh_norm(&weight)?;
        Ok(Some(weight))
    }

    /// The weight for products, from what [`Projection::prepare`] gave.
    pub(super) fn matrix(&self, expanded: Option<Tensor>) -> Matrix<'_> {
        match (expanded, &self.weight) {
            (Some(weight), _) => Matrix::Expanded(weight),
            (None, Weight::Nf4(weight)) => Matrix::Packed(weight),
            (None, Weight::Dense(weight)) => Matrix::Expanded(weight.shallow_clone()),
        }
    }

    /// Applies the layer to `x` `[tokens, in]`, giving `[tokens, out]`. A seed turns the adapter's dropout on.
    ///
    /// # Errors
    /// When shapes do not fit or memory is short.
    pub fn forward(&mut self, x: &Tensor, dropout_seed: Option<u64>, workspace: &mut Workspace) -> Result<Tensor> {
        if dropout_seed.is_none() && self.takes_packed(x) && !self.makes_graph()? {
            let part = self.forward_keeping(x, None, Keeping::Nothing, workspace)?;
            return self.output_of(&part);
        }
        let weight = self.weight(x.f_kind()?, workspace)?;
        self.refresh_norm(&weight)?;
        let Some(adapter) = &self.adapter else {
            return Ok(linear(x, &weight, self.bias.as_ref())?);
        };
        let dropout = dropout_seed.map(|seed| Rng::named(seed, self.name));
        Ok(adapter.lora.forward(x, &weight, self.bias.as_ref(), adapter.norm.as_ref(), dropout)?)
    }

    /// The layer for [`multiply_each`], where products with the few rows of `x` `[n, in]` take the weight as it is. What an adapter
    /// comes before is left out: bias and `before`.
    fn for_few_rows<'a>(&'a self, x: &Tensor, before: Option<&'a Tensor>) -> Option<FewRows<'a>> {
        let is_small = x.size().first().is_some_and(|&n| n <= MAX_FUSED_ROWS);
        match (&self.weight, &self.adapter) {
            (Weight::Nf4(weight), _) if !is_small || !weight.can_multiply() => None,
            (Weight::Nf4(weight), None) => Some(FewRows { weight, bias: self.bias.as_ref(), before }),
            (Weight::Nf4(weight), Some(_)) => Some(FewRows { weight, bias: None, before: None }),
            (Weight::Dense(_), _) => None,
        }
    }

    /// The layer's output from the product `W x`, adapter and bias included: the low-rank product is computed in f32, as PEFT does
    /// outside autocast.
    fn adapt(&mut self, base: Tensor, x: &Tensor, workspace: &mut Workspace) -> Result<Tensor> {
        self.require_norm(x.f_kind()?, workspace)?;
        let Some(adapter) = &self.adapter else { return Ok(base) };
        Ok(adapter.lora.forward_from(base, x, self.bias.as_ref(), adapter.norm.as_ref(), Kind::Float)?)
    }
}

/// Applies layers to the few rows of a decoding step, `x` `[n, in]`, each giving `[n, out]`, with `before` `[n, out]` added: NF4
/// weights are multiplied as they are, not expanded, and together. No gradient.
///
/// # Errors
/// When shapes do not fit or memory is short.
pub(super) fn decode_each<const N: usize>(
    projections: [&mut Projection; N],
    x: &Tensor,
    before: Option<&Tensor>,
    workspace: &mut Workspace,
) -> Result<[Tensor; N]> {
    let layers: Option<Vec<_>> = projections.iter().map(|projection| projection.for_few_rows(x, before)).collect();
    let products = layers.map(|layers| multiply_each(&layers, x)).transpose()?;
    let mut products = products.into_iter().flatten();
    let mut results = std::array::from_fn(|_| Tensor::new());
    for (projection, result) in projections.into_iter().zip(&mut results) {
        let out = match products.next() {
            Some(product) if projection.adapter.is_none() => {
                *result = product;
                continue;
            }
            Some(product) => projection.adapt(product, x, workspace)?,
            None => projection.forward(x, None, workspace)?,
        };
        *result = match before {
            Some(before) => out.f_add(before)?,
            None => out,
        };
    }
    Ok(results)
}
