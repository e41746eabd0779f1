//! The machine: what it is, and how busy it is.

use std::time::SystemTime;

use serde_json::{Value, json};
use sysinfo::{Disks, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::line::{Line, iso_time};
use super::record::{Cpu, EnvironmentRecord, Items, Memory};

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// Reads the system metrics; rates are over the time since the reading before.
pub(super) struct Sampler {
    system: System,
    disks: Disks,
    networks: Networks,
    pid: Option<Pid>,
    /// Bytes received and sent before the run.
    network_before: (u64, u64),
}

impl Sampler {
    pub(super) fn new() -> Self {
        let mut system = System::new();
        system.refresh_cpu_usage();
        let networks = Networks::new_with_refreshed_list();
        let network_before = network_totals(&networks);
        let disks = Disks::new_with_refreshed_list();
        Self { system, disks, networks, pid: sysinfo::get_current_pid().ok(), network_before }
    }

    /// A sample, under the names of wandb's own client.
    pub(super) fn sample(&mut self) -> Line {
        let system = &mut self.system;
        system.refresh_cpu_usage();
        system.refresh_memory();
        let mut values: Vec<(String, Value)> = Vec::new();
        let mut add = |key: &str, value: Value| values.push((key.to_owned(), value));
        let total = system.total_memory() as f64;
        for (idx, cpu) in system.cpus().iter().enumerate() {
            add(&format!("cpu.{idx}.cpu_percent"), json!(cpu.cpu_usage()));
        }
        if total > 0.0 {
            add("memory_percent", json!(100.0 * system.used_memory() as f64 / total));
        }
        add("proc.memory.availableMB", json!(system.available_memory() as f64 / MIB));
        if let Some(pid) = self.pid {
            let what = ProcessRefreshKind::nothing().with_cpu().with_memory().with_disk_usage().with_tasks();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
            let n_cpus = system.cpus().len().max(1) as f64;
            if let Some(process) = system.process(pid) {
                add("cpu", json!(f64::from(process.cpu_usage()) / n_cpus));
                add("proc.memory.rssMB", json!(process.memory() as f64 / MIB));
                if total > 0.0 {
                    add("proc.memory.percent", json!(100.0 * process.memory() as f64 / total));
                }
                add("proc.cpu.threads", json!(process.tasks().map_or(1, |tasks| tasks.len() + 1)));
                let disk = process.disk_usage();
                add("disk.in", json!(disk.total_read_bytes as f64 / MIB));
                add("disk.out", json!(disk.total_written_bytes as f64 / MIB));
            }
        }
        self.disks.refresh(false);
        if let Some(disk) = self.disks.iter().find(|disk| disk.mount_point() == "/").filter(|d| d.total_space() > 0) {
            let used = (disk.total_space() - disk.available_space().min(disk.total_space())) as f64;
            add("disk./.usagePercent", json!(100.0 * used / disk.total_space() as f64));
            add("disk./.usageGB", json!(used / GIB));
        }
        self.networks.refresh(false);
        let (received, sent) = network_totals(&self.networks);
        add("network.recv", json!(received.saturating_sub(self.network_before.0)));
        add("network.sent", json!(sent.saturating_sub(self.network_before.1)));
        let items: Items = values.into_iter().map(|(key, value)| (key, value.to_string())).collect();
        Line::System { time: SystemTime::now(), items }
    }
}

fn network_totals(networks: &Networks) -> (u64, u64) {
    networks.values().fold((0, 0), |(received, sent), network| {
        (received + network.total_received(), sent + network.total_transmitted())
    })
}

/// This machine's name.
pub(super) fn host() -> String {
    System::host_name().unwrap_or_default()
}

/// What the run runs on and was started with. `writer_id` tells this process from others of the same run.
pub(super) fn environment(command: &[String], started: SystemTime, writer_id: &str) -> EnvironmentRecord {
    let mut system = System::new();
    system.refresh_memory();
    system.refresh_cpu_all();
    let model = system.cpus().first().map(|cpu| cpu.brand().to_owned()).unwrap_or_default();
    let n_logical = system.cpus().len() as u32;
    let executable = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
    EnvironmentRecord {
        os: System::long_os_version().unwrap_or_default(),
        started_at: Some(started.into()),
        args: command.iter().skip(1).cloned().collect(),
        program: command.first().cloned().unwrap_or_default(),
        host: host(),
        executable,
        cpu_count: System::physical_core_count().map_or(n_logical, |n| n as u32),
        cpu_count_logical: n_logical,
        memory: Some(Memory { total: system.total_memory() }),
        cpu: Some(Cpu { model }),
        writer_id: writer_id.to_owned(),
    }
}

/// The same as JSON, the form of `wandb-metadata.json` and of the run's configuration.
pub(super) fn environment_json(environment: &EnvironmentRecord) -> Value {
    let started = environment.started_at.map(|time| format!("{}Z", iso_time(time.into())));
    json!({
        "os": environment.os,
        "startedAt": started,
        "args": environment.args,
        "program": environment.program,
        "host": environment.host,
        "executable": environment.executable,
        "cpu_count": environment.cpu_count,
        "cpu_count_logical": environment.cpu_count_logical,
        "memory": {"total": environment.memory.as_ref().map(|memory| memory.total.to_string())},
        "cpu": {"model": environment.cpu.as_ref().map(|cpu| cpu.model.clone())},
        "writerId": environment.writer_id,
    })
}
