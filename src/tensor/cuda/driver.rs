//! NVIDIA's driver: its version, its GPUs, kernels loaded and launched. The crate's room for `unsafe` calls into it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::{Device, Kind, Tensor};

use super::{Error, Result, keep};

/// A CUDA error of this number means that there is no GPU (`CUDA_ERROR_NO_DEVICE`).
const NO_DEVICE: c_int = 100;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `..._MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// `CU_MEMHOSTALLOC_PORTABLE`: the memory is pinned for every GPU.
const PORTABLE: c_uint = 1;

/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`, and what it is of memory of the host.
const MEMORY_TYPE: c_int = 2;
const MEMORY_OF_HOST: c_uint = 1;

type Status = c_int;

/// Opens a library; the error is the loader's own message.
pub(super) fn open_library(path: &OsStr, flags: c_int) -> std::result::Result<Library, String> {
    // SAFETY: the libraries opened here are NVIDIA's and libtorch's, whose initialisers may run on any thread at any time.
    unsafe { Library::open(Some(path), flags) }.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        source.unwrap_or_else(|| error.to_string())
    })
}

/// A function of a library by its name.
///
/// # Safety
/// `F` is the function's type.
pub(super) unsafe fn symbol<F: Copy>(library: &Library, name: &CStr) -> std::result::Result<F, String> {
    // SAFETY: the caller vouches for the type; libraries are kept open, so that the copy stays valid.
    unsafe { library.get::<F>(name.to_bytes_with_nul()) }.map(|symbol| *symbol).map_err(|error| error.to_string())
}

macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $symbol:literal fn($($argument:ty),*);)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $name {
            $($field: unsafe extern "C" fn($($argument),*) -> Status,)+
        }

        impl $name {
            fn load(library: &Library) -> std::result::Result<Self, String> {
                // SAFETY: the types are those of CUDA's `cuda.h`.
                unsafe { Ok(Self { $($field: symbol(library, $symbol)?,)+ }) }
            }
        }
    };
}

functions! {
    /// The part of the driver's interface that is used here.
    Functions {
        init: c"cuInit" fn(c_uint);
        version: c"cuDriverGetVersion" fn(*mut c_int);
        count: c"cuDeviceGetCount" fn(*mut c_int);
        error_name: c"cuGetErrorName" fn(Status, *mut *const c_char);
        get: c"cuDeviceGet" fn(*mut c_int, c_int);
        name: c"cuDeviceGetName" fn(*mut c_char, c_int, c_int);
        attribute: c"cuDeviceGetAttribute" fn(*mut c_int, c_int, c_int);
        retain: c"cuDevicePrimaryCtxRetain" fn(*mut *mut c_void, c_int);
        push: c"cuCtxPushCurrent_v2" fn(*mut c_void);
        pop: c"cuCtxPopCurrent_v2" fn(*mut *mut c_void);
        memory: c"cuMemGetInfo_v2" fn(*mut usize, *mut usize);
        host_alloc: c"cuMemHostAlloc" fn(*mut *mut c_void, usize, c_uint);
        pointer: c"cuPointerGetAttribute" fn(*mut c_void, c_int, u64);
        load: c"cuModuleLoadData" fn(*mut *mut c_void, *const c_void);
        function: c"cuModuleGetFunction" fn(*mut *mut c_void, *mut c_void, *const c_char);
        launch: c"cuLaunchKernel" fn(*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void);
    }
}

/// NVIDIA's driver, initialised. It stays open.
#[derive(Clone, Copy)]
pub struct Driver(Functions);

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Driver")
    }
}

impl Driver {
    /// Opens and initialises the driver.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoGpu`] or [`Error::Driver`].
    pub fn open(library: &OsStr) -> Result<Self> {
        let missing = |reason| Error::NoDriver { library: Path::new(library).to_owned(), reason };
        let opened = open_library(library, RTLD_NOW | RTLD_LOCAL).map_err(missing)?;
        let functions = Functions::load(&opened).map_err(missing)?;
        keep(opened);
        let driver = Self(functions);
        // SAFETY: `cuInit` takes no pointers.
        match unsafe { (functions.init)(0) } {
            NO_DEVICE => Err(Error::NoGpu),
            status => driver.check("cuInit", status).map(|()| driver),
        }
    }

    /// The latest CUDA that the driver supports, 1000 times its major number plus 10 times its minor one.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn version(&self) -> Result<i32> {
        self.number("cuDriverGetVersion", |out| {
            // SAFETY: `out` points to a number.
            unsafe { (self.0.version)(out) }
        })
    }

    /// GPUs that the driver sees.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn count(&self) -> Result<usize> {
        let count = self.number("cuDeviceGetCount", |out| {
            // SAFETY: `out` points to a number.
            unsafe { (self.0.count)(out) }
        })?;
        Ok(count.max(0) as usize)
    }

    /// A GPU, in the context that libtorch uses too.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn gpu(&self, index: usize) -> Result<Gpu> {
        let device = self.number("cuDeviceGet", |out| {
            // SAFETY: `out` points to a number.
            unsafe { (self.0.get)(out, index as c_int) }
        })?;
        let attribute = |which: c_int| {
            self.number("cuDeviceGetAttribute", |out| {
                // SAFETY: `out` points to a number.
                unsafe { (self.0.attribute)(out, which, device) }
            })
        };
        let capability = (attribute(CAPABILITY[0])? as u32, attribute(CAPABILITY[1])? as u32);
        let mut name = [0u8; 256];
        // SAFETY: the driver writes at most as many bytes as it is told, the last one 0.
        let status = unsafe { (self.0.name)(name.as_mut_ptr().cast(), name.len() as c_int, device) };
        self.check("cuDeviceGetName", status)?;
        let name =
            CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is a place for a pointer. The primary context is the one that CUDA's runtime, and so libtorch,
        // works in; it is never released here.
        self.check("cuDevicePrimaryCtxRetain", unsafe { (self.0.retain)(&raw mut context, device) })?;
        Ok(Gpu { driver: *self, context, name, capability })
    }

    fn number(&self, call: &'static str, get: impl FnOnce(*mut c_int) -> Status) -> Result<c_int> {
        let mut out = 0;
        self.check(call, get(&raw mut out))?;
        Ok(out)
    }

    fn check(&self, call: &'static str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: `name` is a place for a pointer to a text that lives as long as the driver.
        let fault = unsafe {
            match (self.0.error_name)(status, &raw mut name) {
                0 if !name.is_null() => format!("{} ({status})", CStr::from_ptr(name).to_string_lossy()),
                _ => format!("error {status}"),
            }
        };
        Err(Error::Driver { call, fault })
    }
}

/// One GPU.
#[derive(Debug)]
pub struct Gpu {
    driver: Driver,
    context: *mut c_void,
    /// As NVIDIA names the card.
    pub name: String,
    /// Its compute capability, such as (9, 0).
    pub capability: (u32, u32),
}

// SAFETY: a context may be used from any thread; it is made current for each call and put back after it.
unsafe impl Send for Gpu {}
// SAFETY: as for `Send`; the driver's functions are safe to call from several threads.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Free and total memory, bytes.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        self.within(|functions| {
            // SAFETY: both point to numbers.
            self.driver.check("cuMemGetInfo", unsafe { (functions.memory)(&raw mut free, &raw mut total) })
        })?;
        Ok((free, total))
    }

    /// A tensor of zeros in pinned memory of the host, which kernels reach over the bus. The memory stays until the process
    /// ends, because a tensor's copies may outlive whoever asked for it. (libtorch's own function for this warns at every
    /// call.)
    ///
    /// # Errors
    /// [`Error::Driver`] when memory is short.
    pub fn pinned_zeros(&self, n: usize, kind: Kind) -> Result<Tensor> {
        let size = n * kind.elt_size_in_bytes();
        let mut memory: *mut c_void = std::ptr::null_mut();
        self.within(|functions| {
            // SAFETY: `memory` is a place for a pointer.
            let status = unsafe { (functions.host_alloc)(&raw mut memory, size.max(1), PORTABLE) };
            self.driver.check("cuMemHostAlloc", status)
        })?;
        // SAFETY: the memory has this size, nobody else knows it yet, and it is never freed.
        let tensor = unsafe {
            std::ptr::write_bytes(memory.cast::<u8>(), 0, size);
            Tensor::f_from_blob(memory.cast(), &[n as i64], &[1], kind, Device::Cpu)
        };
        tensor.map_err(|error| Error::Driver { call: "cuMemHostAlloc", fault: error.to_string() })
    }

    /// Whether memory of the host is pinned.
    pub fn is_pinned(&self, memory: *mut c_void) -> bool {
        let mut found: c_uint = 0;
        let asked = self.within(|functions| {
            // SAFETY: the attribute is a 32-bit number; the driver looks the address up and does not read there.
            let status = unsafe { (functions.pointer)((&raw mut found).cast(), MEMORY_TYPE, memory as u64) };
            self.driver.check("cuPointerGetAttribute", status)
        });
        asked.is_ok() && found == MEMORY_OF_HOST
    }

    /// Loads compiled kernels, and gives those of these names in their order. They stay loaded.
    ///
    /// # Errors
    /// [`Error::Driver`] when the GPU cannot run them, or when one is not there.
    pub fn load(&self, compiled: &[u8], names: &[&'static str]) -> Result<Vec<Function>> {
        // PTX is a text and has to end with 0; the driver reads the length of a CUBIN from itself.
        let image = [compiled, &[0]].concat();
        self.within(|functions| {
            let mut module = std::ptr::null_mut();
            // SAFETY: the driver copies the image, which is complete.
            let status = unsafe { (functions.load)(&raw mut module, image.as_ptr().cast()) };
            self.driver.check("cuModuleLoadData", status)?;
            let find = |&name: &&'static str| {
                let mut function = std::ptr::null_mut();
                let text = CString::new(name).unwrap_or_default();
                // SAFETY: the module is loaded, and the name ends with 0.
                let status = unsafe { (functions.function)(&raw mut function, module, text.as_ptr()) };
                self.driver.check("cuModuleGetFunction", status)?;
                Ok(Function(function))
            };
            names.iter().map(find).collect()
        })
    }

    /// Launches a kernel on the legacy default stream, behind what libtorch has launched before and before what it
    /// launches after: libtorch works on that stream unless it is told otherwise, and nothing here tells it.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in number, order and type, and what they point to is large enough for the
    /// grid, is of this GPU (or pinned), and stays allocated until the stream has passed the launch: a tensor of libtorch
    /// does, because its memory goes only to later work of the same stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub unsafe fn launch(&self, function: &Function, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        let Launch { blocks, threads } = launch;
        self.within(|functions| {
            // SAFETY: the caller vouches for the arguments; the driver copies them before it returns.
            let status = unsafe {
                let null = std::ptr::null_mut();
                (functions.launch)(function.0, blocks, 1, 1, threads, 1, 1, 0, null, pointers.as_mut_ptr(), null.cast())
            };
            self.driver.check("cuLaunchKernel", status)
        })
    }

    /// Makes the GPU's context current for a call and puts the one before back.
    fn within<T>(&self, call: impl FnOnce(&Functions) -> Result<T>) -> Result<T> {
        let functions = &self.driver.0;
        // SAFETY: the context is alive.
        self.driver.check("cuCtxPushCurrent", unsafe { (functions.push)(self.context) })?;
        let outcome = call(functions);
        let mut popped = std::ptr::null_mut();
        // SAFETY: a context was pushed above.
        let status = unsafe { (functions.pop)(&raw mut popped) };
        self.driver.check("cuCtxPopCurrent", status)?;
        outcome
    }
}

/// A loaded kernel.
#[derive(Debug)]
pub struct Function(*mut c_void);

// SAFETY: a handle that the driver's functions take from any thread.
unsafe impl Send for Function {}
// SAFETY: as for `Send`.
unsafe impl Sync for Function {}

/// The size of a launch, in one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    Pointer(*mut c_void),
    U32(u32),
    U64(u64),
    I64(i64),
    F32(f32),
}

impl Argument {
    fn pointer(&self) -> *mut c_void {
        match self {
            Self::Pointer(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::U64(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::I64(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
        }
    }
}

type HostLaunch = unsafe extern "C" fn(*const c_char, c_uint, c_uint, *mut *mut c_void) -> c_int;

/// Kernels compiled for the host, in a library with one function `host_launch`: how they are run where there is no GPU.
pub struct HostFunctions(HostLaunch);

impl std::fmt::Debug for HostFunctions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostFunctions")
    }
}

impl HostFunctions {
    /// Opens the library, which stays open.
    ///
    /// # Errors
    /// [`Error::Driver`] with the loader's message.
    pub fn open(library: &Path) -> Result<Self> {
        let failed = |fault| Error::Driver { call: "host_launch", fault };
        let opened = open_library(library.as_os_str(), RTLD_NOW | RTLD_LOCAL).map_err(failed)?;
        // SAFETY: the type is that in `tests/cuda/kernels.cpp`.
        let launch = unsafe { symbol::<HostLaunch>(&opened, c"host_launch") }.map_err(failed)?;
        keep(opened);
        Ok(Self(launch))
    }

    /// Runs a kernel to its end. Only one may run at a time.
    ///
    /// # Safety
    /// As for [`Gpu::launch`], with memory of the host.
    ///
    /// # Errors
    /// [`Error::Driver`] when there is no such kernel.
    pub unsafe fn launch(&self, name: &str, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        let text = CString::new(name).unwrap_or_default();
        // SAFETY: the caller vouches for the arguments.
        match unsafe { (self.0)(text.as_ptr(), launch.blocks, launch.threads, pointers.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(Error::Driver { call: "host_launch", fault: format!("there is no kernel `{name}`") }),
        }
    }
}
