//! The most memory that this process has had at once, as Linux counts it.

use std::{fs, io};

/// The peak since the last [`reset_peak`], in bytes; none where the system does not say.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Starts the count of [`peak_memory`] anew.
///
/// # Errors
/// Where the system does not offer that; the peak then is that of the whole process.
pub fn reset_peak() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}
