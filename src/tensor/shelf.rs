//! Memory for what a training step keeps while other tensors come and go. In the heap it would leave holes that nothing fits into.
//!
//! A [`Shelf`] is for tensors whose lengths change with every batch: one after the other, all of them forgotten at once. A [`Place`]
//! is for one whose size does not change. The next step writes where the one before did.

use std::cell::{Cell, RefCell};

use tch::{Device, Kind, Tensor};

use super::Result;

/// What is reserved at a time. Pages that nothing was written to take no memory.
const BOARD_BYTES: usize = 256 << 20;

/// Tensors begin at multiples of this, as libtorch's own do.
const ALIGN: usize = 64;

/// Places for tensors on the CPU.
#[derive(Debug, Default)]
pub struct Shelf {
    /// `[BOARD_BYTES]` bytes each.
    boards: RefCell<Vec<Tensor>>,
    /// The board that is being filled, and how much of it is taken.
    next: Cell<(usize, usize)>,
}

impl Shelf {
    /// An uninitialized tensor that lies on the shelf, or by itself where it is for another device or longer than a board.
    ///
    /// # Errors
    /// When memory is short.
    pub fn place(&self, shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
        let len = shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        if device != Device::Cpu || len == 0 || len > BOARD_BYTES {
            return Ok(Tensor::f_empty(shape, (kind, device))?);
        }
        let (mut idx, mut start) = self.next.get();
        if start + len > BOARD_BYTES {
            (idx, start) = (idx + 1, 0);
        }
        let mut boards = self.boards.borrow_mut();
        if idx == boards.len() {
            boards.push(Tensor::f_empty([BOARD_BYTES as i64], (Kind::Uint8, Device::Cpu))?);
        }
        let place = boards[idx].f_narrow(0, start as i64, len as i64)?.f_view_dtype(kind)?.f_view(shape)?;
        self.next.set((idx, (start + len).next_multiple_of(ALIGN)));
        Ok(place)
    }

    /// `x`, copied onto the shelf.
    ///
    /// # Errors
    /// As [`Shelf::place`].
    pub fn copy(&self, x: &Tensor) -> Result<Tensor> {
        let mut place = self.place(&x.size(), x.f_kind()?, x.device())?;
        place.f_copy_(x)?;
        Ok(place)
    }

    /// `x + y` on the shelf, of equal shape and type. No gradient.
    ///
    /// # Errors
    /// As [`Shelf::place`], and when the two do not fit.
    pub fn sum(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(x.f_add_out(&self.place(&x.size(), x.f_kind()?, x.device())?, y)?)
    }

    /// Begins anew: later tensors are written over those that are there. For when nobody looks at those any more.
    pub fn clear(&mut self) {
        self.next.set((0, 0));
    }
}

/// Memory on the CPU for a tensor in f32 that is made anew again and again.
#[derive(Debug, Default)]
pub struct Place(Option<Tensor>);

impl Place {
    /// Memory for a tensor of this size; none on another device, whose allocator is left to itself.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(size: &[i64], device: Device) -> Result<Self> {
        Ok(Self(match device {
            Device::Cpu => Some(Tensor::f_empty(size, (Kind::Float, device))?),
            _ => None,
        }))
    }

    /// `x` without its graph, written over what was held before; `x` itself where there is no memory for it.
    ///
    /// # Errors
    /// When `x` has another size.
    pub fn hold(&mut self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_detach()?;
        match &mut self.0 {
            Some(place) => {
                place.f_copy_(&x)?;
                Ok(place.shallow_clone())
            }
            None => Ok(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Rng, as_slice};

    #[test]
    fn a_place_holds_what_came_last() {
        let mut rng = Rng::named(4, "place");
        let [first, second] = [(); 2].map(|()| rng.normal(&[3, 2], 1.0).unwrap());
        let mut place = Place::new(&[3, 2], Device::Cpu).unwrap();
        let held = place.hold(&first).unwrap();
        assert!(held.equal(&first) && held.data_ptr() != first.data_ptr());
        let again = place.hold(&second).unwrap();
        assert!(again.equal(&second) && again.data_ptr() == held.data_ptr());
        assert!(place.hold(&second.narrow(0, 0, 2)).is_err());
        assert_eq!(Place::default().hold(&first).unwrap().data_ptr(), first.data_ptr());
    }

    #[test]
    fn tensors_lie_side_by_side_until_the_shelf_is_cleared() {
        let mut shelf = Shelf::default();
        let mut rng = Rng::named(3, "shelf");
        let sources: Vec<Tensor> = [[3i64, 5], [1, 1], [40, 7], [2, 64]]
            .iter()
            .zip([Kind::BFloat16, Kind::Float, Kind::BFloat16, Kind::Float])
            .map(|(shape, kind)| rng.normal(shape, 1.0).unwrap().to_kind(kind))
            .collect();
        let placed: Vec<Tensor> = sources.iter().map(|source| shelf.copy(source).unwrap()).collect();
        let sum = shelf.sum(&sources[0], &sources[0]).unwrap();
        assert!(sum.equal(&(&sources[0] + &sources[0])) && sum.kind() == Kind::BFloat16);
        for (source, placed) in sources.iter().zip(&placed) {
            assert!(placed.is_contiguous() && placed.equal(source) && placed.kind() == source.kind());
            assert_eq!(placed.data_ptr() as usize % ALIGN, 0);
        }
        let first = placed[0].data_ptr();
        shelf.clear();
        assert_eq!(shelf.copy(&sources[1]).unwrap().data_ptr(), first);
        assert_eq!(as_slice::<f32>(&shelf.place(&[0, 4], Kind::Float, Device::Cpu).unwrap()).unwrap().len(), 0);
    }

    #[test]
    fn a_full_board_is_followed_by_another() {
        let shelf = Shelf::default();
        let len = (BOARD_BYTES / 2 + 1) as i64;
        let places: Vec<Tensor> =
            [len, len, 8, 2 * len].iter().map(|&len| shelf.place(&[len], Kind::Uint8, Device::Cpu).unwrap()).collect();
        assert_eq!(
            places.iter().map(Tensor::numel).collect::<Vec<_>>(),
            [len, len, 8, 2 * len].map(|len| len as usize)
        );
        // The third lies behind the second; the last is longer than a board.
        assert_eq!(shelf.boards.borrow().len(), 2);
        assert_eq!(
            places[2].data_ptr() as usize,
            (places[1].data_ptr() as usize + len as usize).next_multiple_of(ALIGN)
        );
    }
}
