//! The loops over NF4 bytes, per device.

pub mod cpu;
