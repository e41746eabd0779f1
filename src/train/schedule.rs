//! Learning-rate schedules, counted in optimizer steps, as transformers defines them.

use crate::config::Scheduler;

/// The factor on the learning rate of optimizer step `step` (from 0) out of `n_steps`, the first `n_warmup` of which
/// rise linearly from 0.
pub fn learning_rate_factor(scheduler: Scheduler, step: u64, n_warmup: u64, n_steps: u64) -> f64 {
    if scheduler == Scheduler::Constant {
        return 1.0;
    }
    if step < n_warmup {
        return step as f64 / n_warmup.max(1) as f64;
    }
    let progress = (step - n_warmup) as f64 / n_steps.saturating_sub(n_warmup).max(1) as f64;
    match scheduler {
        Scheduler::Constant => 1.0,
        Scheduler::Linear => (1.0 - progress).max(0.0),
        Scheduler::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
        // transformers: timescale = n_warmup, or 10,000 without a warm-up.
        Scheduler::InverseSqrt => {
            let timescale = if n_warmup > 0 { n_warmup as f64 } else { 10_000.0 };
            let shift = timescale - n_warmup as f64;
            1.0 / ((step as f64 + shift) / timescale).sqrt()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_of_transformers() {
        // get_*_schedule_with_warmup(warmup=4, total=12) at steps 0, 2, 4, 8, 11; computed by hand from its formulas.
        let at = |scheduler| [0, 2, 4, 8, 11].map(|step| learning_rate_factor(scheduler, step, 4, 12));
        assert_eq!(at(Scheduler::Constant), [1.0; 5]);
        assert_eq!(at(Scheduler::Linear), [0.0, 0.5, 1.0, 0.5, 0.125]);
        let cosine = at(Scheduler::Cosine);
        assert_eq!((cosine[1], cosine[2]), (0.5, 1.0));
        assert!((cosine[3] - 0.5).abs() < 1e-12 && (cosine[4] - 0.038_060_233_744).abs() < 1e-9);
        let inverse = at(Scheduler::InverseSqrt);
        assert_eq!((inverse[1], inverse[2]), (0.5, 1.0));
        assert!((inverse[3] - 0.5f64.sqrt()).abs() < 1e-12);
        assert!(
            (learning_rate_factor(Scheduler::InverseSqrt, 5, 0, 12) - (10_000.0f64 / 10_005.0).sqrt()).abs() < 1e-12
        );
    }
}
