// A driver as far as it is asked before libtorch is opened. STATUS, VERSION and COUNT are given to the compiler.
#define FUNCTION(name) int name(void) { return 0; }
int cuInit(unsigned flags) { (void)flags; return STATUS; }
int cuDriverGetVersion(int *out) { *out = VERSION; return 0; }
int cuDeviceGetCount(int *out) { *out = COUNT; return 0; }
int cuGetErrorName(int status, const char **out) { *out = status == 999 ? "CUDA_ERROR_UNKNOWN" : 0; return 0; }
FUNCTION(cuDeviceGet)
FUNCTION(cuDeviceGetName)
FUNCTION(cuDeviceGetAttribute)
FUNCTION(cuDevicePrimaryCtxRetain)
FUNCTION(cuCtxPushCurrent_v2)
FUNCTION(cuCtxPopCurrent_v2)
FUNCTION(cuMemGetInfo_v2)
FUNCTION(cuMemHostAlloc)
FUNCTION(cuPointerGetAttribute)
FUNCTION(cuModuleLoadData)
FUNCTION(cuModuleGetFunction)
FUNCTION(cuLaunchKernel)
