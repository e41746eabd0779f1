//! Values on their way between the host and a device, so that neither waits for the other unless it has to.
//!
//! Everything but [`read`] is only enqueued, on the stream that libtorch computes on, and so comes in order with its work.

use tch::{Device, Kind, Tensor};

use super::Result;

/// A tensor of these values on a device. The host does not wait for the work that was enqueued there before.
///
/// # Errors
/// When memory is short.
pub fn upload<T: tch::kind::Element>(values: &[T], device: Device) -> Result<Tensor> {
    move_to(&Tensor::f_from_slice(values)?, device)
}

/// The tensor on a device; itself when it is there. From a GPU to the host it goes into pinned memory, of which libtorch
/// keeps what was freed for the next one: it may be moved on from there, but not looked at, without waiting.
///
/// # Errors
/// When memory is short.
pub fn move_to(tensor: &Tensor, device: Device) -> Result<Tensor> {
    Ok(tensor.f_to_device_(device, tensor.f_kind()?, true, false)?)
}

/// The values of a tensor in 32 bits. Waits for all work that was enqueued on its device.
///
/// # Errors
/// When memory is short.
pub fn read(tensor: &Tensor) -> Result<Vec<f32>> {
    #[cfg(test)]
    tests::READS.set(tests::READS.get() + 1);
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let mut values = vec![0f32; tensor.numel()];
    let n = values.len();
    tensor.f_copy_data(&mut values, n)?;
    Ok(values)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    thread_local! {
        pub(super) static READS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    /// How often this thread has called [`read`].
    pub(crate) fn n_reads() -> u64 {
        READS.get()
    }

    #[test]
    fn values_arrive_as_they_were_sent() {
        let before = n_reads();
        let there = upload(&[1i64, -2, 3], Device::Cpu).unwrap();
        assert_eq!((there.kind(), there.size()), (Kind::Int64, vec![3]));
        let moved = move_to(&there, Device::Cpu).unwrap();
        assert_eq!(moved.data_ptr(), there.data_ptr());
        assert_eq!(n_reads(), before);
        assert_eq!(read(&moved).unwrap(), [1.0, -2.0, 3.0]);
        assert_eq!(n_reads(), before + 1);
    }
}
