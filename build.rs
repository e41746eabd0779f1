//! Embeds the run path of libtorch, so that the binary starts without `LD_LIBRARY_PATH`.
//!
//! First comes the folder `lib` beside the binary's own, which an unpacked release has, then the libtorch that the build
//! saw. `AXISMAPPER_PORTABLE=1` leaves the second out: `scripts/release.sh` sets it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=AXISMAPPER_PORTABLE");
    let target_os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if target_os == "linux" {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    }
    let is_portable = std::env::var("AXISMAPPER_PORTABLE").is_ok_and(|value| value == "1");
    if let (Ok(lib_dir), false) = (std::env::var("DEP_TCH_LIBTORCH_LIB"), is_portable) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib_dir}");
    }
}
