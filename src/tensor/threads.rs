//! The threads that this program's own loops are shared out over.
//!
//! A thread outside the pool hands its work over and sleeps until it is done, which costs two thread switches each time. A member
//! of the pool begins at once and shares what others have time for. So the thread that owns the model joins the pool.
//!
//! libtorch has threads of its own, OpenMP's. Those that wait by spinning take the cores from this program's loops.

use std::env;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Makes the calling thread one of the pool that every thread uses: for the thread that does most of the program's work, before any
/// other work.
///
/// # Errors
/// When there is a pool already, or a thread cannot be started. Work is shared out all the same, with more waiting.
pub fn join_pool() -> Result<(), ThreadPoolBuildError> {
    ThreadPoolBuilder::new().use_current_thread().build_global()
}

/// Makes the calling thread one of a pool of its own, which it uses as long as the result lives.
///
/// # Errors
/// When a thread cannot be started. Work is shared out all the same, over the pool of every thread.
pub fn own_pool() -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new().use_current_thread().build()
}

/// What decides how OpenMP's threads wait: the standard's name for it, then GNU's own.
const WAIT_POLICIES: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];

/// Starts the program anew with OpenMP threads that sleep while they wait, unless the environment says how they are to wait. OpenMP
/// reads that when it is loaded, which is before `main`, and never again. The process stays the same; where the program cannot be
/// started anew, it goes on as it is.
pub fn let_openmp_sleep() {
    if WAIT_POLICIES.iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    #[cfg(target_os = "linux")]
    if let Ok(program) = env::current_exe() {
        use std::os::unix::process::CommandExt;
        let mut args = env::args_os();
        let mut again = std::process::Command::new(program);
        if let Some(name) = args.next() {
            again.arg0(name);
        }
        // It returns only when it fails, which costs time later on and nothing else.
        let _ = again.args(args).env(WAIT_POLICIES[0], "passive").exec();
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    #[test]
    fn a_thread_with_a_pool_of_its_own_does_its_share() {
        let thread = std::thread::spawn(|| {
            let pool = super::own_pool().unwrap();
            let (first, n_threads) = (rayon::current_thread_index(), pool.current_num_threads());
            // One part is done by the caller itself, at once.
            let sum = (0..1000u64).into_par_iter().sum::<u64>();
            (first, n_threads, sum)
        });
        let (first, n_threads, sum) = thread.join().unwrap();
        assert_eq!((first, sum), (Some(0), 499_500));
        assert!(n_threads >= 1);
    }
}
