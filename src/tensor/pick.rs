//! Rows of a tensor by an index that may be the identity, which then is not there.

use tch::{Device, Tensor};

use super::{Result, upload};

/// Places an index into `n` rows on a device, `[places]` i64; `None` when it names all of them in turn.
///
/// # Errors
/// When memory is short.
pub fn upload_index(places: &[i64], n: usize, device: Device) -> Result<Option<Tensor>> {
    let is_identity = places.len() == n && places.iter().zip(0..).all(|(&place, idx)| place == idx);
    Ok(if is_identity { None } else { Some(upload(places, device)?) })
}

/// The rows of `x` that an index names; without one, `x` itself.
///
/// # Errors
/// When memory is short or a row is not there.
pub fn pick_rows(x: &Tensor, index: Option<&Tensor>) -> Result<Tensor> {
    Ok(match index {
        Some(index) => x.f_index_select(0, index)?,
        None => x.shallow_clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_needs_no_index() {
        let x = Tensor::from_slice(&[5i64, 6, 7]);
        let picked = |places: &[i64]| {
            let index = upload_index(places, 3, Device::Cpu).unwrap();
            (index.is_none(), Vec::<i64>::try_from(pick_rows(&x, index.as_ref()).unwrap()).unwrap())
        };
        assert_eq!(picked(&[0, 1, 2]), (true, vec![5, 6, 7]));
        assert_eq!(picked(&[0, 1]), (false, vec![5, 6]));
        assert_eq!(picked(&[2, 0, 2, 1]), (false, vec![7, 5, 7, 6]));
    }
}
