//! CUDA without a GPU: what is said when something is missing, and the kernels: compiled by NVRTC for real GPUs, and
//! compiled for the host and held to the CPU's loops. Nothing here shows how they run on a GPU.

mod kernels;

use std::path::{Path, PathBuf};
use std::process::Command;

use axismapper::diag::Failure;
use axismapper::quant::cuda::compile;
use axismapper::tensor::cuda::{Compiled, Nvrtc, Search};

/// A folder of this test run.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Compiles a shared library with the C++ compiler that the build needs anyway.
fn build_library(source: &str, options: &[&str], out: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    command.args(["-shared", "-fPIC", "-o"]).arg(out).args(options).arg(source);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A driver that gives these answers.
fn driver(dir: &Path, status: i32, version: i32, count: i32) -> PathBuf {
    let out = dir.join("libcuda.so.1");
    let defines = [("STATUS", status), ("VERSION", version), ("COUNT", count)].map(|(name, n)| format!("-D{name}={n}"));
    let options: Vec<&str> = defines.iter().map(String::as_str).chain(["-x", "c"]).collect();
    build_library("tests/cuda/driver.c", &options, &out);
    out
}

/// What a search is refused with, as a user reads it.
fn refusal(driver: impl Into<std::ffi::OsString>, libtorch: &Path, index: Option<usize>) -> String {
    let search = Search { driver: driver.into(), libtorch: Some(libtorch.to_owned()) };
    Failure::from(search.open(index).unwrap_err()).render()
}

#[test]
fn whatever_is_missing_for_a_gpu_is_named_with_its_remedy() {
    let dir = folder("missing");
    let check = |found: String, parts: &[&str]| {
        for part in parts {
            assert!(found.contains(part), "`{part}` is not in: {found}");
        }
        assert!(found.contains("\n  hint: "), "{found}");
    };
    let at = |name: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let none = dir.join("no-driver.so");
    check(refusal(&none, &dir, None), &["there is no NVIDIA driver", "no-driver.so", "nvidia-smi", "--device cpu"]);
    let no_gpu = driver(&at("a"), 100, 13_000, 0);
    check(refusal(no_gpu, &dir, None), &["sees no GPU", "CUDA_VISIBLE_DEVICES"]);
    let broken = driver(&at("b"), 999, 13_000, 1);
    check(refusal(broken, &dir, None), &["failed in cuInit", "CUDA_ERROR_UNKNOWN (999)"]);
    let old = driver(&at("c"), 0, 12_040, 1);
    check(refusal(old, &dir, None), &["supports CUDA 12.4, libtorch needs 13.0", "580"]);
    let sound = driver(&at("d"), 0, 13_000, 2);
    check(refusal(&sound, &dir, Some(2)), &["no GPU 2, the driver sees 2"]);
    // A driver and a GPU, but a libtorch without its CUDA parts, or with those of another.
    check(
        refusal(&sound, &dir, Some(1)),
        &["libtorch has no CUDA parts", "libtorch_cuda.so", "scripts/setup.sh --cuda"],
    );
    let torn = at("e");
    std::fs::write(torn.join("libtorch_cuda.so"), "torn").unwrap();
    check(refusal(&sound, &torn, None), &["libtorch has no CUDA parts", "scripts/setup.sh --cuda"]);
    let other = at("f");
    std::fs::write(
        other.join("other.c"),
        "int of_another_version(void); int use(void) { return of_another_version(); }",
    )
    .unwrap();
    let source = other.join("other.c");
    build_library(source.to_str().unwrap(), &["-x", "c"], &other.join("libtorch_cuda.so"));
    check(refusal(&sound, &other, None), &["of another version", "of_another_version"]);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_command_says_why_it_does_not_run_on_a_gpu() {
    let dir = folder("command");
    std::fs::write(dir.join("s.yaml"), "model:\n  name: base\nlora:\n  r: 4\ndata:\n  train: x.jsonl\n").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
        command.current_dir(&dir).args(["train", "--config", "s.yaml"]).args(arguments);
        // The loader looks here before it looks for a driver of the system.
        let output = command.env("LD_LIBRARY_PATH", &dir).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    driver(&dir, 100, 13_000, 0);
    let (status, message) = run(&["--device", "cuda"]);
    assert!(status == Some(1) && message.contains("NVIDIA's driver sees no GPU"), "{status:?} {message}");
    let mut check = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    let output = check.arg("check-gpu").env("LD_LIBRARY_PATH", &dir).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{message}");
    assert!(message.starts_with("error: NVIDIA's driver sees no GPU"), "{message}");
    // Nothing is said about a GPU that nobody asked for and that is not there.
    let (status, message) = run(&[]);
    assert!(
        status == Some(2) && message.starts_with("error: the model `base` is not a folder"),
        "{status:?} {message}"
    );
    driver(&dir, 0, 12_080, 1);
    let (status, message) = run(&["--device", "auto"]);
    assert!(status == Some(2) && message.contains("running on the CPU"), "{status:?} {message}");
    assert!(message.contains("supports CUDA 12.8") && message.contains("`base` is not a folder"), "{message}");
    let (status, message) = run(&["--device", "cuda:1"]);
    assert!(status == Some(1) && message.contains("supports CUDA 12.8"), "{status:?} {message}");
    std::fs::remove_dir_all(dir).unwrap();
}

/// Where `scripts/setup.sh` puts NVRTC: among NVIDIA's libraries, or alone for the tests.
fn compiler() -> Nvrtc {
    let mut folders = Search::system().compiler_folders();
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join(".libtorch/nvrtc/nvidia/cu13/lib"));
    Nvrtc::open(&folders).expect("the kernels cannot be compiled; `scripts/setup.sh --tests` installs NVRTC")
}

#[test]
fn every_kernel_compiles_for_the_gpus_that_are_about() {
    let nvrtc = compiler();
    for capability in [(8, 0), (8, 9), (9, 0)] {
        let Compiled::Cubin(bytes) = compile(&nvrtc, capability).unwrap() else { panic!("no machine code") };
        assert_eq!(bytes[..4], *b"\x7fELF", "{capability:?}");
    }
    // A GPU that is newer than the compiler gets a text that its driver compiles.
    let Compiled::Ptx(text) = compile(&nvrtc, (99, 0)).unwrap() else { panic!("machine code of no known GPU") };
    let text = String::from_utf8(text).unwrap();
    let entries = text.lines().filter(|line| line.contains(".visible .entry")).count();
    assert!(entries == 15 && text.contains("nf4_dequantize_bf16"), "{entries} kernels");

    let typo = nvrtc.compile("extern \"C\" __global__ void k() { undeclared = 1; }", (9, 0), &[]).unwrap_err();
    assert!(typo.to_string().contains("undeclared"), "{typo}");
}

/// Runs `check-gpu` on the CPU, comparing it with itself: status, standard output, standard error.
fn check_gpu(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    let output = command.args(["--quiet", "check-gpu"]).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_device_that_computes_as_the_cpu_passes_and_its_speeds_are_listed() {
    let dir = folder("report");
    let out = dir.join("report.json");
    let sizes = ["--shape", "tiny", "--batch", "2", "--len", "16", "--seconds", "0.01"];
    let arguments = [&["--device", "cpu", "--out", out.to_str().unwrap()], sizes.as_slice()].concat();
    let (status, table, message) = check_gpu(&arguments);
    assert_eq!(status, Some(0), "{table}{message}");
    assert!(table.contains("ok     ORPO gradients, DoRA, bfloat16") && !table.contains("FAILED"), "{table}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert!(report["parity"].as_array().unwrap().len() > 20, "{report}");
    let speeds = report["speed"].as_array().unwrap();
    let cases: Vec<&str> = speeds.iter().map(|row| row["ours"]["case"].as_str().unwrap()).collect();
    assert_eq!(cases, ["sft-lora", "sft-dora", "orpo-lora", "orpo-dora", "decode"]);
    for row in speeds {
        assert!(row["ours"]["tokens_per_second"].as_f64().unwrap() > 0.0 && row["share"].as_f64().unwrap() > 0.0);
        assert!(table.contains(&format!("| {} | ", row["ours"]["case"].as_str().unwrap())), "{table}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_device_with_one_wrong_weight_fails() {
    let (status, table, message) = check_gpu(&["--device", "cpu", "--no-speed", "--disturb"]);
    assert_eq!(status, Some(1), "{table}{message}");
    for what in ["expanded NF4 weights", "logits", "SFT losses", "ORPO gradients"] {
        assert!(table.contains(&format!("FAILED {what}, DoRA, float32")), "{what}: {table}");
        assert!(message.contains(what), "{message}");
    }
    // What has nothing to do with the weight.
    assert!(table.contains("ok     steps of paged_adamw_8bit"), "{table}");
}
