//! NVRTC, NVIDIA's compiler of CUDA C as a library: source in, machine code of a GPU out. It needs no GPU.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use super::driver::{open_library, symbol};
use super::{Error, Result, keep};

type Status = c_int;
type Program = *mut c_void;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> Status;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Status;

/// The compiler. It stays open.
#[derive(Clone, Copy)]
pub struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    n_archs: unsafe extern "C" fn(*mut c_int) -> Status,
    archs: unsafe extern "C" fn(*mut c_int) -> Status,
    create: Create,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log: (GetSize, GetBytes),
    ptx: (GetSize, GetBytes),
    cubin: (GetSize, GetBytes),
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nvrtc")
    }
}

/// Compiled kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiled {
    /// Machine code of one architecture.
    Cubin(Vec<u8>),
    /// A text that the driver turns into machine code of a newer architecture than the compiler knows.
    Ptx(Vec<u8>),
}

impl Compiled {
    /// The bytes, as the driver loads them.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Cubin(bytes) | Self::Ptx(bytes) => bytes,
        }
    }
}

impl Nvrtc {
    /// Opens the compiler from the first of these folders that holds it, or where the loader finds it.
    ///
    /// # Errors
    /// [`Error::NoCompiler`].
    pub fn open(folders: &[PathBuf]) -> Result<Self> {
        let missing = || Error::NoCompiler { folders: folders.to_owned() };
        for folder in folders {
            let Some(library) = library_in(folder, "libnvrtc.so.13") else { continue };
            // The compiler opens this one by its bare name, which the loader finds only when it is open already.
            if let Some(builtins) = library_in(folder, "libnvrtc-builtins.so.13")
                && let Ok(opened) = open_library(builtins.as_os_str(), RTLD_NOW | RTLD_GLOBAL)
            {
                keep(opened);
            }
            if let Ok(opened) = open_library(library.as_os_str(), RTLD_NOW | RTLD_LOCAL) {
                return Self::load(opened).map_err(|_| missing());
            }
        }
        let opened = open_library("libnvrtc.so.13".as_ref(), RTLD_NOW | RTLD_LOCAL).map_err(|_| missing())?;
        Self::load(opened).map_err(|_| missing())
    }

    fn load(library: Library) -> std::result::Result<Self, String> {
        // SAFETY: the types are those of CUDA's `nvrtc.h`.
        let found = unsafe {
            Self {
                version: symbol(&library, c"nvrtcVersion")?,
                n_archs: symbol(&library, c"nvrtcGetNumSupportedArchs")?,
                archs: symbol(&library, c"nvrtcGetSupportedArchs")?,
                create: symbol(&library, c"nvrtcCreateProgram")?,
                destroy: symbol(&library, c"nvrtcDestroyProgram")?,
                compile: symbol(&library, c"nvrtcCompileProgram")?,
                log: (symbol(&library, c"nvrtcGetProgramLogSize")?, symbol(&library, c"nvrtcGetProgramLog")?),
                ptx: (symbol(&library, c"nvrtcGetPTXSize")?, symbol(&library, c"nvrtcGetPTX")?),
                cubin: (symbol(&library, c"nvrtcGetCUBINSize")?, symbol(&library, c"nvrtcGetCUBIN")?),
            }
        };
        keep(library);
        Ok(found)
    }

    /// Its version, major and minor.
    pub fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to numbers.
        unsafe { (self.version)(&raw mut major, &raw mut minor) };
        (major, minor)
    }

    /// The architectures that it makes machine code for, ascending: 75, 80, ...
    pub fn architectures(&self) -> Vec<u32> {
        let mut n = 0;
        // SAFETY: `n` is a number; the list has as many places as the compiler says.
        let archs = unsafe {
            if (self.n_archs)(&raw mut n) != 0 || n <= 0 {
                return Vec::new();
            }
            let mut archs = vec![0; n as usize];
            match (self.archs)(archs.as_mut_ptr()) {
                0 => archs,
                _ => return Vec::new(),
            }
        };
        archs.into_iter().map(|arch: c_int| arch as u32).collect()
    }

    /// Compiles for a GPU's capability: machine code where the compiler knows it, else PTX for the latest that it knows
    /// and the GPU has.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's messages.
    pub fn compile(&self, source: &str, capability: (u32, u32), options: &[&str]) -> Result<Compiled> {
        let wanted = capability.0 * 10 + capability.1;
        let known = self.architectures();
        if known.contains(&wanted) {
            return self.run(source, &format!("sm_{wanted}"), options, self.cubin).map(Compiled::Cubin);
        }
        let latest = known.into_iter().filter(|&arch| arch < wanted).max().unwrap_or(wanted);
        self.run(source, &format!("compute_{latest}"), options, self.ptx).map(Compiled::Ptx)
    }

    fn run(&self, source: &str, arch: &str, options: &[&str], get: (GetSize, GetBytes)) -> Result<Vec<u8>> {
        let failed = |log: String| Error::Compile { arch: arch.to_owned(), log };
        let text = CString::new(source).map_err(|error| failed(error.to_string()))?;
        let architecture = format!("--gpu-architecture={arch}");
        let options: Vec<CString> = std::iter::once(&architecture.as_str())
            .chain(options)
            .map(|option| CString::new(*option))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| failed(error.to_string()))?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: texts end with 0 and live until the program is destroyed; there are no headers.
        unsafe {
            let none = std::ptr::null();
            let status = (self.create)(&raw mut program, text.as_ptr(), c"axismapper.cu".as_ptr(), 0, none, none);
            if status != 0 {
                return Err(failed(format!("NVRTC error {status}")));
            }
            let status = (self.compile)(program, pointers.len() as c_int, pointers.as_ptr());
            let outcome = match status {
                0 => bytes_of(program, get).ok_or_else(|| failed("NVRTC gives no result".into())),
                status => {
                    let log = bytes_of(program, self.log).unwrap_or_default();
                    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
                    Err(failed(format!("NVRTC error {status}: {log}")))
                }
            };
            (self.destroy)(&raw mut program);
            outcome
        }
    }
}

/// What a program has to give, of the size that it says.
///
/// # Safety
/// The program is alive and the functions are a pair of NVRTC's.
unsafe fn bytes_of(program: Program, (size, get): (GetSize, GetBytes)) -> Option<Vec<u8>> {
    let mut n = 0;
    // SAFETY: the caller vouches for the program; the buffer has the size that it asks for.
    unsafe {
        if size(program, &raw mut n) != 0 || n == 0 {
            return None;
        }
        let mut bytes = vec![0u8; n];
        (get(program, bytes.as_mut_ptr().cast()) == 0).then_some(bytes)
    }
}

/// The file in a folder whose name starts like this, the shortest one: `.alt` libraries are for other purposes.
fn library_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
    files.filter(is_it).min_by_key(|path| path.as_os_str().len())
}
