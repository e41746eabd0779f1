//! The bytes behind CPU tensors as slices, and files mapped into memory. The crate's one room for such `unsafe` code.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{Error, Result};
use crate::fsio;

/// An element type of a CPU tensor that is plain memory.
pub trait Element: Copy + private::Sealed {
    /// The libtorch type with this memory layout.
    const KIND: Kind;
    /// Its name in messages.
    const NAME: &'static str;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $kind:expr),+) => {$(
        impl private::Sealed for $rust {}
        impl Element for $rust {
            const KIND: Kind = $kind;
            const NAME: &'static str = stringify!($rust);
        }
    )+};
}

elements!(f32 => Kind::Float, u8 => Kind::Uint8, i64 => Kind::Int64, half::bf16 => Kind::BFloat16, half::f16 => Kind::Half);

fn check<T: Element>(tensor: &Tensor) -> Result<()> {
    let kind = tensor.f_kind()?;
    if tensor.device() == Device::Cpu && kind == T::KIND && tensor.is_contiguous() {
        Ok(())
    } else {
        Err(Error::View { device: tensor.device(), kind, wanted: T::NAME })
    }
}

/// The elements of a contiguous CPU tensor.
///
/// # Errors
/// [`Error::View`] when the tensor is elsewhere, of another type, or not contiguous.
pub fn as_slice<T: Element>(tensor: &Tensor) -> Result<&[T]> {
    check::<T>(tensor)?;
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the tensor is dense CPU memory of `numel` elements of this type (checked), allocated with libtorch's
    // 64-byte alignment, and lives as long as the borrow. Tensors are used by one thread, and no alias is written
    // while the slice is held by the callers of this module.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), tensor.numel()) })
}

/// The elements of a contiguous CPU tensor, to be written. Autograd does not see the write: use it on buffers only.
///
/// # Errors
/// [`Error::View`] when the tensor is elsewhere, of another type, or not contiguous.
pub fn as_slice_mut<T: Element>(tensor: &mut Tensor) -> Result<&mut [T]> {
    check::<T>(tensor)?;
    if tensor.numel() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `as_slice`; the exclusive borrow keeps this handle from being read meanwhile.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) })
}

/// The raw bytes of a contiguous CPU tensor of any type.
///
/// # Errors
/// [`Error::View`] when the tensor is not contiguous CPU memory.
pub fn as_bytes(tensor: &Tensor) -> Result<&[u8]> {
    let kind = tensor.f_kind()?;
    if tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        return Err(Error::View { device: tensor.device(), kind, wanted: "bytes" });
    }
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: as in `as_slice`; every initialised element is readable as bytes.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), tensor.numel() * kind.elt_size_in_bytes()) })
}

/// While it lives, every tensor of a mebibyte or more has pages of its own, which go back when the tensor does.
///
/// glibc's allocator moves its own limit up to the size of what was freed, and from then on tensors that come and go while a model
/// is loaded leave holes between those that stay. Afterwards the limit is half of glibc's highest, so that most buffers of a
/// training step, which come and go in the same sizes, are not cleared by the kernel each time, and its largest leave no holes. Other allocators are left as they are.
#[derive(Debug)]
pub struct LargeApart(());

impl LargeApart {
    /// From now on.
    pub fn new() -> Self {
        limit_of_the_heap(1 << 20);
        Self(())
    }
}

impl Default for LargeApart {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for LargeApart {
    fn drop(&mut self) {
        limit_of_the_heap(LATER_LIMIT);
        give_back();
    }
}

/// Half of `DEFAULT_MMAP_THRESHOLD_MAX` of glibc's malloc.c on 64 bits.
const LATER_LIMIT: i32 = 16 << 20;

/// Sets from which size on a block has pages of its own. A value that the allocator does not take changes nothing.
fn limit_of_the_heap(size_bytes: i32) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes two numbers and the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, size_bytes);
        // As the allocator itself does when it moves the limit: free memory at the heap's end up to twice the limit is kept.
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * size_bytes);
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = size_bytes;
}

/// Gives the heap's free pages back to the system, wherever they lie.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes the allocator's own locks, and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A file mapped into memory, read only.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// An I/O error when the file cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(fsio::Error::io("open", path))?;
        // SAFETY: the mapping is read only. A file that another program cuts short while it is mapped ends this
        // program with SIGBUS, as with every reader that maps its weights; nothing is written through it.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fsio::Error::io("map", path))?;
        Ok(Self(map))
    }

    /// Gives back the memory of a part that was read: it stays in the file, and is read again when it is looked at again.
    pub fn release(&self, part: Range<usize>) {
        // SAFETY: the mapping is read only and backed by a file, so that a page let go comes back with the same bytes.
        let advised = unsafe {
            self.0.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                part.start,
                part.end.saturating_sub(part.start),
            )
        };
        // Advice that the system does not take costs memory, not correctness.
        drop(advised);
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_refuses_other_types_and_strides() {
        let t = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([2, 2]);
        assert_eq!(as_slice::<f32>(&t).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert!(as_slice::<u8>(&t).is_err());
        assert!(as_slice::<f32>(&t.transpose(0, 1)).is_err());
        let mut buffer = t.copy();
        as_slice_mut::<f32>(&mut buffer).unwrap()[3] = 9.0;
        assert_eq!(buffer.double_value(&[1, 1]), 9.0);
        assert_eq!(as_bytes(&t).unwrap().len(), 16);
    }
}
