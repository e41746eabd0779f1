//! Which storage type each tensor of a Qwen2 model gets.
//!
//! `q4_k_m` is llama.cpp's mix (`llama_tensor_get_type` in `src/llama-quant.cpp`): Q6_K for the output matrix and for
//! half of the value and down projections, Q4_K for the rest; a row that 256 does not divide falls back to a format of
//! blocks of 32 (hidden size 896 of the 0.5B model is such a row).

use super::GgufType;
use super::blocks::Storage;

/// What decides a tensor's type.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub kind: GgufType,
    pub n_layers: usize,
    /// The output matrix is the embedding.
    pub is_tied: bool,
}

impl Mix {
    /// The type of a tensor of this GGUF name and row-major shape, in the block `layer`.
    pub fn storage_of(self, name: &str, shape: &[u64], layer: Option<usize>) -> Storage {
        let is_matrix = shape.len() == 2 && !name.ends_with("_norm.weight");
        let Some(&n_columns) = shape.last().filter(|_| is_matrix) else { return Storage::F32 };
        let wanted = match self.kind {
            GgufType::F16 => Storage::F16,
            GgufType::Bf16 => Storage::Bf16,
            GgufType::Q8_0 => Storage::Q8_0,
            GgufType::Q4KM => self.q4_k_m(name, n_columns, layer),
        };
        fitting(wanted, n_columns)
    }

    fn q4_k_m(self, name: &str, n_columns: u64, layer: Option<usize>) -> Storage {
        let is_output = name == "output.weight" || self.is_tied && name == "token_embd.weight";
        if is_output {
            return if n_columns.is_multiple_of(256) { Storage::Q6K } else { Storage::Q8_0 };
        }
        let gets_more = layer.is_some_and(|layer| more_bits(layer, self.n_layers));
        match name.rsplit('.').nth(1) {
            Some("attn_v" | "ffn_down") if gets_more => Storage::Q6K,
            // In the largest model eight query heads share a value head, so that its projection costs little.
            Some("attn_v") if self.n_layers == 80 => Storage::Q5K,
            _ => Storage::Q4K,
        }
    }
}

/// The first and the last eighth of the blocks, and every third between them.
fn more_bits(layer: usize, n_layers: usize) -> bool {
    layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2
}

/// The type itself, or the next one whose blocks divide the row.
fn fitting(wanted: Storage, n_columns: u64) -> Storage {
    let fits = |storage: Storage| n_columns.is_multiple_of(storage.block().0 as u64);
    let next = match wanted {
        _ if fits(wanted) => return wanted,
        Storage::Q4K => Storage::Q5_0,
        Storage::Q5K => Storage::Q5_1,
        Storage::Q6K => Storage::Q8_0,
        _ => Storage::F16,
    };
    if fits(next) { next } else { Storage::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(n_layers: usize, name: &str, n_columns: u64, layer: usize) -> Storage {
        Mix { kind: GgufType::Q4KM, n_layers, is_tied: false }.storage_of(name, &[8, n_columns], Some(layer))
    }

    #[test]
    fn the_mix_is_that_of_llama_cpp() {
        let more: Vec<usize> = (0..28).filter(|&layer| more_bits(layer, 28)).collect();
        assert_eq!(more, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]);
        assert_eq!(storage(28, "blk.0.attn_v.weight", 512, 0), Storage::Q6K);
        assert_eq!(storage(28, "blk.3.attn_v.weight", 512, 3), Storage::Q4K);
        assert_eq!(storage(80, "blk.13.attn_v.weight", 512, 13), Storage::Q5K);
        assert_eq!(storage(28, "blk.5.ffn_down.weight", 896, 5), Storage::Q8_0);
        assert_eq!(storage(28, "blk.3.ffn_up.weight", 896, 3), Storage::Q5_0);
        assert_eq!(storage(28, "blk.3.ffn_up.weight", 50, 3), Storage::F16);
        assert_eq!(storage(28, "output.weight", 512, 0), Storage::Q6K);
        assert_eq!(storage(28, "token_embd.weight", 512, 0), Storage::Q4K);
        let tied = Mix { kind: GgufType::Q4KM, n_layers: 24, is_tied: true };
        assert_eq!(tied.storage_of("token_embd.weight", &[8, 896], None), Storage::Q8_0);
        assert_eq!(tied.storage_of("blk.1.attn_q.bias", &[896], Some(1)), Storage::F32);
        assert_eq!(tied.storage_of("blk.1.attn_norm.weight", &[896], Some(1)), Storage::F32);
    }
}
