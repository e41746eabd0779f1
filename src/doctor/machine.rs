//! The machine: processor, memory with the container's limit, libtorch, disks.

use std::fs;
use std::path::{Path, PathBuf};

use sysinfo::{Disks, System};
use tch::{Kind, Tensor};

use super::{Check, size_text};

/// The vector sets that kernels here or in libtorch use, as Linux spells them, from the best down.
const VECTOR_SETS: [(&str, &str); 6] = [
    ("amx_bf16", "AMX"),
    ("avx512_bf16", "AVX-512 with bf16"),
    ("avx512f", "AVX-512"),
    ("avx2", "AVX2"),
    ("fma", "FMA"),
    ("f16c", "F16C"),
];

/// The processor's cores and vector sets.
pub fn check_processor() -> Check {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    processor(&cpuinfo, n_cores)
}

fn processor(cpuinfo: &str, n_cores: usize) -> Check {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = if n_cores == 1 { "1 core".to_owned() } else { format!("{n_cores} cores") };
    let Some(flags) = field("flags") else { return Check::ok("processor", format!("{model}, {cores}")) };
    let flags: Vec<&str> = flags.split(' ').collect();
    let sets: Vec<&str> = VECTOR_SETS.iter().filter(|(flag, _)| flags.contains(flag)).map(|(_, name)| *name).collect();
    let message =
        format!("{model}, {cores}, {}", if sets.is_empty() { "no vector sets".into() } else { sets.join(", ") });
    match flags.contains(&"avx2") {
        true => Check::ok("processor", message),
        false => {
            Check::warning("processor", message, "without AVX2 training is many times slower; use another machine")
        }
    }
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What a process here can have at most: the machine's, or the container's limit.
    pub total: u64,
    /// What is free of it.
    pub free: u64,
    /// Whether the limit is a container's.
    pub is_limited: bool,
}

/// A container's limit on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLimit {
    pub total: u64,
    /// The limit less what is used, where files kept in memory count as free.
    pub free: u64,
}

/// The machine's memory, within the limit of the control group that this process runs in.
pub fn memory() -> Memory {
    let mut system = System::new();
    system.refresh_memory();
    let (total, free) = (system.total_memory(), system.available_memory());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match cgroup_limit(Path::new("/sys/fs/cgroup"), &own).filter(|limit| limit.total < total) {
        Some(limit) => Memory { total: limit.total, free: limit.free.min(free), is_limited: true },
        None => Memory { total, free, is_limited: false },
    }
}

/// The tightest limit of a control group and of those above it. `own` is the text of `/proc/self/cgroup`.
pub fn cgroup_limit(root: &Path, own: &str) -> Option<CgroupLimit> {
    let path_of = |line: &str, controller: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        controllers.split(',').any(|name| name == controller).then(|| parts.next().unwrap_or_default().to_owned())
    };
    // Version 2 has one line without a controller's name; version 1 a line for `memory`.
    let v2 = own.lines().find_map(|line| path_of(line, "")).unwrap_or_default();
    let v1 = own.lines().find_map(|line| path_of(line, "memory")).unwrap_or_default();
    let of_v2 = limits(root, &v2, ["memory.max", "memory.current", "inactive_file"]);
    let of_v1 =
        limits(&root.join("memory"), &v1, ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]);
    of_v2.into_iter().chain(of_v1).min_by_key(|limit| limit.total)
}

/// The limits of a group and of those above it.
fn limits(root: &Path, own: &str, [max, used, inactive]: [&str; 3]) -> Vec<CgroupLimit> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut dir = root.join(own.trim_start_matches('/'));
    let mut found = Vec::new();
    loop {
        if let Some(total) = number(dir.join(max)) {
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let of_files = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok());
            let used = number(dir.join(used)).unwrap_or(0).saturating_sub(of_files.unwrap_or(0));
            found.push(CgroupLimit { total, free: total.saturating_sub(used) });
        }
        if dir == root || !dir.pop() || !dir.starts_with(root) {
            return found;
        }
    }
}

/// How much memory there is.
pub fn check_memory(memory: Memory) -> Check {
    let Memory { total, free, is_limited } = memory;
    let whose = if is_limited { "the container's limit" } else { "the machine's" };
    let message = format!("{} free of {} ({whose})", size_text(free), size_text(total));
    match free < total / 5 {
        true => Check::warning("memory", message, "other programs hold most of it; end them, or expect a stop"),
        false => Check::ok("memory", message),
    }
}

/// Whether libtorch is there and computes, which version it is and where it lies.
pub fn check_compute() -> Check {
    let computed = || -> Result<f64, tch::TchError> {
        let x = Tensor::f_from_slice(&[1f32, 2.0, 3.0, 4.0])?.f_reshape([2, 2])?;
        x.f_matmul(&x)?.f_sum(Kind::Float)?.f_double_value(&[])
    };
    let place = loaded_library("libtorch_cpu");
    let shown = place.as_deref().map_or_else(|| "a place unknown".to_owned(), |path| path.display().to_string());
    let version = place.as_deref().and_then(version_beside).unwrap_or_else(|| "version unknown".into());
    match computed() {
        Ok(54.0) => {
            let n = tch::get_num_threads();
            Check::ok("libtorch", format!("{version} at {shown}, {n} threads"))
        }
        Ok(other) => Check::fatal(
            "libtorch",
            format!("{version} at {shown} computes wrongly: {other} instead of 54"),
            "install it again with scripts/setup.sh",
        ),
        Err(error) => Check::fatal(
            "libtorch",
            format!("{version} at {shown} does not compute: {error}"),
            "install it again with scripts/setup.sh",
        ),
    }
}

/// Where a library of this process was loaded from.
fn loaded_library(stem: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    path.map(Path::new)
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)))
        .map(Path::to_owned)
}

/// The version that libtorch's folder or the wheel says.
fn version_beside(library: &Path) -> Option<String> {
    // A packed release has the version in a file beside the library.
    if let Ok(text) = fs::read_to_string(library.parent()?.join("libtorch-version")) {
        return Some(text.trim().to_owned());
    }
    let home = library.parent()?.parent()?;
    if let Ok(text) = fs::read_to_string(home.join("version.py")) {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        return Some(line.trim_matches(['\'', '"']).to_owned());
    }
    let text = fs::read_to_string(home.join("build-version")).ok()?;
    Some(text.trim().to_owned())
}

/// Whether a folder can be written to, and has room. `needed` is what is going to be written there, where that is known.
pub fn check_disk(name: &str, dir: &Path, needed: Option<u64>) -> Check {
    let Some(there) = existing(dir) else {
        return Check::fatal(name, format!("`{}` cannot be made", dir.display()), "name another folder");
    };
    if !there.is_dir() {
        let message = format!("`{}` is a file, where the folder `{}` should go", there.display(), dir.display());
        return Check::fatal(name, message, "name another folder");
    }
    if let Err(error) = tempfile::Builder::new().prefix(".axismapper-").tempfile_in(&there) {
        let hint = crate::diag::io_hint(&error).unwrap_or_else(|| "name another folder".into());
        return Check::fatal(name, format!("`{}` cannot be written to: {error}", there.display()), hint);
    }
    let Some(free) = free_bytes(&there) else {
        return Check::ok(name, format!("`{}` can be written to", dir.display()));
    };
    let message = format!("{} free at `{}`", size_text(free), dir.display());
    match needed {
        Some(needed) if free < needed => Check::fatal(
            name,
            format!("{message}, about {} are needed", size_text(needed)),
            "free some space, name another folder, or keep fewer checkpoints (training.save_total_limit)",
        ),
        Some(needed) if free / 2 < needed => Check::warning(
            name,
            format!("{message}, about {} are needed", size_text(needed)),
            "that leaves little; free some space",
        ),
        Some(needed) => Check::ok(name, format!("{message}, about {} are needed", size_text(needed))),
        None if free < 1_000_000_000 => Check::warning(name, message, "free some space"),
        None => Check::ok(name, message),
    }
}

/// The folder, or the nearest one above it that exists.
fn existing(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    absolute.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

/// What is free on the disk of a folder that exists.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let dir = dir.canonicalize().ok()?;
    let disks = Disks::new_with_refreshed_list();
    let holds = disks.iter().filter(|disk| dir.starts_with(disk.mount_point()));
    // The innermost mount is the one that the folder is on.
    holds.max_by_key(|disk| disk.mount_point().components().count()).map(sysinfo::Disk::available_space)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::pipeline::peak_memory;

    #[test]
    fn the_processor_is_named_with_its_vector_sets() {
        let text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 fma avx512f amx_bf16\n";
        let check = processor(text, 2);
        assert_eq!((check.status, &*check.message), (Status::Ok, "Some CPU, 2 cores, AMX, AVX-512, AVX2, FMA"));
        let old = processor("model name : Old\nflags : fpu sse2\n", 1);
        assert_eq!((old.status, &*old.message), (Status::Warning, "Old, 1 core, no vector sets"));
    }

    #[test]
    fn the_tightest_limit_of_a_container_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(cgroup_limit(dir.path(), "0::/a/b\n"), None);
        write("a/memory.max", "8000\n");
        write("a/memory.current", "3000\n");
        write("a/memory.stat", "anon 1\ninactive_file 500\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(cgroup_limit(dir.path(), "0::/a/b\n"), Some(CgroupLimit { total: 8000, free: 5500 }));
        // Inside a container the path may name a group outside of what is mounted.
        write("memory.max", "4000");
        assert_eq!(cgroup_limit(dir.path(), "0::/../x"), Some(CgroupLimit { total: 4000, free: 4000 }));

        let old = tempfile::tempdir().unwrap();
        let group = old.path().join("memory/docker/x");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.limit_in_bytes"), "900").unwrap();
        fs::write(group.join("memory.usage_in_bytes"), "100").unwrap();
        let own = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n";
        assert_eq!(cgroup_limit(old.path(), own), Some(CgroupLimit { total: 900, free: 800 }));
    }

    #[test]
    fn a_disk_without_room_or_rights_is_fatal() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("not/there/yet");
        assert_ne!(check_disk("output", &below, None).status, Status::Fatal);
        assert!(!below.exists());
        let full = check_disk("output", &below, Some(u64::MAX));
        assert_eq!(full.status, Status::Fatal, "{full:?}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_disk("output", &file.join("x"), None).message.contains("is a file"));
    }

    #[test]
    fn this_machine_has_memory_and_a_peak() {
        let memory = memory();
        assert!(memory.free > 0 && memory.free <= memory.total, "{memory:?}");
        assert!(peak_memory().unwrap() > 1 << 20);
        assert_eq!(check_compute().status, Status::Ok, "{:?}", check_compute());
    }
}
