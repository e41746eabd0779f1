//! Grouped-query attention over packed records, scores and softmax in f32.

use tch::{Kind, Tensor};

use super::Result;
use super::kv_cache::LayerCache;
use super::packing::{Group, Packed};

/// What a block's tokens attend to.
#[derive(Debug)]
pub(super) enum Context<'a> {
    /// Records of a packed row, each to itself.
    Packed(&'a Packed),
    /// As `Packed`, storing the keys and values of record `i`, `lens[i]` tokens, in row `first + i`.
    Prefill { packed: &'a Packed, lens: &'a [i64], first: i64, cache: &'a mut LayerCache },
}

/// Attends with rotated queries `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`.
/// Gives `[tokens, heads * head_dim]`.
pub(super) fn attend(context: &mut Context<'_>, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    match context {
        Context::Packed(packed) => attend_packed(packed, q, k, v),
        Context::Prefill { packed, lens, first, cache } => {
            let mut start = 0;
            for (row, &len) in (*first..).zip(lens.iter()) {
                cache.prefill(row, &k.f_narrow(0, start, len)?, &v.f_narrow(0, start, len)?)?;
                start += len;
            }
            attend_packed(packed, q, k, v)
        }
    }
}

fn attend_packed(packed: &Packed, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    if let Some(fused) = &packed.fused {
        return fused.attend(q, k, v);
    }
    let mut rows = Vec::with_capacity(packed.groups.len());
    for group in &packed.groups {
        rows.push(attend_group(group, q, k, v)?);
    }
    let rows = if rows.len() == 1 { rows.swap_remove(0) } else { Tensor::f_cat(&rows, 0)? };
    Ok(match &packed.unpack {
        Some(unpack) => rows.f_index_select(0, unpack)?,
        None => rows,
    })
}

/// One group: `[n * len, heads * head_dim]`, padded rows included.
fn attend_group(group: &Group, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (_, heads, head_dim) = q.size3()?;
    let kv_heads = k.size3()?.1;
    let per_kv = heads / kv_heads;
    let (n, len) = (group.n, group.len);
    let kind = q.f_kind()?;
    let gather = |x: &Tensor| -> Result<Tensor> {
        Ok(match &group.gather {
            Some(index) => x.f_index_select(0, index)?,
            None => x.shallow_clone(),
        })
    };
    // Heads that share keys become more query rows: keys are not repeated.
    let q = gather(q)?.f_reshape([n, len, kv_heads, per_kv, head_dim])?.f_permute([0, 2, 3, 1, 4])?;
    let q = q.f_reshape([n * kv_heads, per_kv * len, head_dim])?.f_to_kind(Kind::Float)?;
    let k = gather(k)?.f_reshape([n, len, kv_heads, head_dim])?.f_permute([0, 2, 3, 1])?;
    let k = k.f_reshape([n * kv_heads, head_dim, len])?.f_to_kind(Kind::Float)?;
    let v = gather(v)?.f_reshape([n, len, kv_heads, head_dim])?.f_transpose(1, 2)?;
    let v = v.f_reshape([n * kv_heads, len, head_dim])?;

    let scores = q.f_mul_scalar(1.0 / (head_dim as f64).sqrt())?.f_bmm(&k)?;
    let scores = scores.f_view([n, kv_heads, per_kv, len, len])?.f_add(&group.mask)?;
    let weights = scores.f_softmax(-1, None)?.f_to_kind(kind)?.f_view([n * kv_heads, per_kv * len, len])?;
    let out = weights.f_bmm(&v)?.f_view([n, kv_heads, per_kv, len, head_dim])?;
    Ok(out.f_permute([0, 3, 1, 2, 4])?.f_reshape([n * len, heads * head_dim])?)
}
