//! The threads that this program's own loops are shared out over.
//!
//! A thread outside the pool hands its work over and sleeps until it is done, which costs two thread switches each time. A member
//! of the pool begins at once and shares what others have time for. So the thread that owns the model joins the pool.

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
