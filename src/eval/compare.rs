//! Before and after: whether two evaluations of the same records differ by more than chance, said in plain words.
//!
//! Exact match is compared by McNemar's exact test (McNemar 1947) on the records that only one of the two got right;
//! every other figure by a paired bootstrap, in which both sides draw the same records. Exact match has a bootstrap
//! interval too, which shows the size of the difference; where the two disagree, the exact test decides, because it
//! holds for few records and the interval does not.

use indicatif::HumanCount;
use serde::{Serialize, Serializer};

use super::interval::{Interval, bootstrap};
use super::metrics::{Figures, N_FIGURES, Summands};
use super::record::{Key, Record, pair};

/// A difference that chance makes less often than this is called one.
const LEVEL: f64 = 0.05;
/// The place of exact match in [`Figures::NAMES`].
const EXACT_MATCH: usize = 0;

/// Two evaluations, record by record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What is compared with.
    pub before: String,
    /// What is compared.
    pub after: String,
    /// Records of both.
    pub n: usize,
    /// Records that only the evaluation before has.
    pub n_only_before: usize,
    /// Records that only the evaluation after has.
    pub n_only_after: usize,
    /// Questions whose right codes are not the same in both; left out.
    pub n_relabelled: usize,
    /// Records that were wrong before and are right after.
    pub n_gained: usize,
    /// Records that were right before and are wrong after.
    pub n_lost: usize,
    /// How often chance alone would split `n_gained + n_lost` as unevenly.
    pub p_value: f64,
    /// What that says of exact match.
    pub verdict: Verdict,
    /// Every figure on the records of both, in the order of [`Figures::NAMES`]; written under the same names.
    #[serde(serialize_with = "by_name")]
    pub differences: [Difference; N_FIGURES],
    /// All of this in words.
    pub statement: String,
}

/// A figure before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The figure before.
    pub before: f64,
    /// The figure after.
    pub after: f64,
    /// The 95 % interval of what it rose by.
    pub interval: Interval,
    /// Better or worse when the interval leaves out 0; for exact match, what the exact test says.
    pub verdict: Verdict,
}

/// What a comparison shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The later one is better.
    Better,
    /// The later one is worse.
    Worse,
    /// These records cannot tell.
    Undecided,
}

/// A named evaluation to compare.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Its records.
    pub records: &'a [Record],
}

/// Compares two evaluations on the records of both; none when they have no record in common. The seed is that of the
/// intervals.
pub fn compare(before: Side<'_>, after: Side<'_>, seed: u64) -> Option<Comparison> {
    let keys = |side: Side<'_>| side.records.iter().map(|record| record.key.clone()).collect::<Vec<Key>>();
    let pairs = pair(&keys(before), &keys(after));
    let n = pairs.places.len();
    if n == 0 {
        return None;
    }
    let outcomes = || pairs.places.iter().map(|&(a, b)| (&before.records[a].outcome, &after.records[b].outcome));
    let n_gained = outcomes().filter(|(a, b)| !a.is_exact() && b.is_exact()).count();
    let n_lost = outcomes().filter(|(a, b)| a.is_exact() && !b.is_exact()).count();
    let p_value = sign_test(n_gained, n_lost);

    let (summands_before, summands_after): (Vec<Summands>, Vec<Summands>) =
        outcomes().map(|(a, b)| (Summands::of(a), Summands::of(b))).unzip();
    let values = |summands: &[Summands], places: &[usize]| {
        Figures::from_summands(places.iter().map(|&place| summands[place])).values()
    };
    let rises = |places: &[usize]| {
        let (before, after) = (values(&summands_before, places), values(&summands_after, places));
        std::array::from_fn(|idx| after[idx] - before[idx])
    };
    let all: Vec<usize> = (0..n).collect();
    let (values_before, values_after) = (values(&summands_before, &all), values(&summands_after, &all));
    let intervals: [Interval; N_FIGURES] = bootstrap(n, seed, rises);
    let verdict = match n_gained.cmp(&n_lost) {
        _ if p_value >= LEVEL => Verdict::Undecided,
        std::cmp::Ordering::Greater => Verdict::Better,
        _ => Verdict::Worse,
    };
    let verdict_at = |idx: usize| match idx {
        EXACT_MATCH => verdict,
        _ => verdict_of(intervals[idx], Figures::is_fault(Figures::NAMES[idx])),
    };
    let mut comparison = Comparison {
        before: before.name.to_owned(),
        after: after.name.to_owned(),
        n,
        n_only_before: before.records.len() - n - pairs.n_relabelled,
        n_only_after: after.records.len() - n - pairs.n_relabelled,
        n_relabelled: pairs.n_relabelled,
        n_gained,
        n_lost,
        p_value,
        verdict,
        differences: std::array::from_fn(|idx| Difference {
            before: values_before[idx],
            after: values_after[idx],
            interval: intervals[idx],
            verdict: verdict_at(idx),
        }),
        statement: String::new(),
    };
    comparison.statement = statement(&comparison);
    Some(comparison)
}

impl Comparison {
    /// The difference of the figure of that name.
    pub fn difference(&self, name: &str) -> Option<&Difference> {
        Figures::NAMES.iter().position(|known| *known == name).map(|idx| &self.differences[idx])
    }
}

fn verdict_of(rise: Interval, is_fault: bool) -> Verdict {
    match (rise.low > 0.0, rise.high < 0.0) {
        (false, false) => Verdict::Undecided,
        (has_risen, _) if has_risen != is_fault => Verdict::Better,
        _ => Verdict::Worse,
    }
}

/// How often `n_gained + n_lost` fair coins fall at least as unevenly: the two-sided exact test of McNemar.
fn sign_test(n_gained: usize, n_lost: usize) -> f64 {
    let n = n_gained + n_lost;
    // ln of C(n, k) / 2^n for k = 0 and up; the terms grow, so that the smallest are added first.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = ln_term.exp();
    for k in 1..=n_gained.min(n_lost) {
        ln_term += ((n - k + 1) as f64 / k as f64).ln();
        tail += ln_term.exp();
    }
    (2.0 * tail).min(1.0)
}

fn statement(of: &Comparison) -> String {
    let Comparison { before, after, n, n_gained, n_lost, .. } = of;
    let rise = of.differences[EXACT_MATCH];
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let [from, to] = [rise.before, rise.after].map(percent);
    let moved = format!("exact match {from} % -> {to} % on the same {} records", HumanCount(*n as u64));
    let turned = format!("{n_gained} wrong answers turned right, {n_lost} right ones wrong");
    let mut text = match of.verdict {
        Verdict::Undecided if n_gained + n_lost == 0 => {
            format!("`{after}` and `{before}` get the same records right: {moved}.")
        }
        Verdict::Undecided => format!(
            "No difference between `{after}` and `{before}` that these records can show: {moved}; {turned}, and chance \
             alone gives a split as uneven {} ({}). {}",
            in_words(of.p_value),
            p_text(of.p_value),
            interval_text(rise.interval)
        ),
        verdict => format!(
            "`{after}` is {} than `{before}`: {moved}; {turned}, a split that chance alone would give {} ({}).",
            if verdict == Verdict::Better { "better" } else { "worse" },
            in_words(of.p_value),
            p_text(of.p_value),
        ),
    };
    let named = |wanted: Verdict| -> Vec<String> {
        let differ = Figures::NAMES.iter().zip(&of.differences).skip(1).filter(|(_, found)| found.verdict == wanted);
        differ.map(|(name, _)| name.replace('_', " ").replace("f1", "F1")).collect()
    };
    for (verdict, word) in [(Verdict::Better, "better"), (Verdict::Worse, "worse")] {
        let names = named(verdict);
        if !names.is_empty() {
            text += &format!(" Also {word}: {}.", names.join(", "));
        }
    }
    let left_out = [
        (of.n_only_before, format!("only in `{before}`")),
        (of.n_only_after, format!("only in `{after}`")),
        (of.n_relabelled, "with other right codes now".to_owned()),
    ];
    let left_out: Vec<String> =
        left_out.iter().filter(|(n, _)| *n > 0).map(|(n, which)| format!("{n} {which}")).collect();
    if !left_out.is_empty() {
        text += &format!(" Records left out: {}.", left_out.join(", "));
    }
    text
}

/// The interval of a difference that the exact test leaves undecided.
fn interval_text(interval: Interval) -> String {
    let points = format!("from {} to {} points", signed(interval.low), signed(interval.high));
    if interval.low <= 0.0 && interval.high >= 0.0 {
        return format!("The 95 % interval of the difference is {points}.");
    }
    format!(
        "The 95 % bootstrap interval of the difference, {points}, leaves out 0, but is inexact where so few answers \
         changed; of exact match the exact test decides."
    )
}

fn in_words(p_value: f64) -> String {
    match p_value {
        p if p < 1e-6 => "less than once in a million times".into(),
        p if p < 0.001 => "less than once in a thousand times".into(),
        p if p < 0.1 => format!("about {} times in a thousand", (1000.0 * p).round()),
        p if p < 1.0 => format!("in {:.0} % of cases", 100.0 * p),
        _ => "every time".into(),
    }
}

fn p_text(p_value: f64) -> String {
    let known = "McNemar's exact test";
    if p_value < 0.001 { format!("{known}, p < 0.001") } else { format!("{known}, p = {p_value:.3}") }
}

fn signed(share: f64) -> String {
    format!("{:+.1}", 100.0 * share)
}

fn by_name<S: Serializer>(differences: &[Difference; N_FIGURES], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Figures::NAMES.iter().zip(differences))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_test_is_that_of_statsmodels() {
        // statsmodels.stats.contingency_tables.mcnemar([[0, gained], [lost, 0]], exact=True).pvalue
        let known = [
            (1, 5, 0.21875),
            (0, 10, 0.001953125),
            (5, 15, 0.04138946533203125),
            (520, 24, 1.58210044468993e-122),
            (0, 0, 1.0),
            (7, 7, 1.0),
            (480, 520, 0.2174482932041415),
            (51_000, 49_000, 2.5887160383468943e-10),
        ];
        for (n_gained, n_lost, p_value) in known {
            let found = sign_test(n_gained, n_lost);
            // 49,000 logarithms of numbers up to 7e4 are added up.
            assert!((found - p_value).abs() <= 1e-7 * p_value, "{n_gained} {n_lost}: {found:e}, expected {p_value:e}");
        }
    }

    #[test]
    fn a_fault_that_falls_is_better() {
        let (fall, rise) = (Interval { low: -0.2, high: -0.1 }, Interval { low: 0.1, high: 0.2 });
        assert_eq!([verdict_of(fall, true), verdict_of(rise, true)], [Verdict::Better, Verdict::Worse]);
        assert_eq!([verdict_of(fall, false), verdict_of(rise, false)], [Verdict::Worse, Verdict::Better]);
        assert_eq!(verdict_of(Interval { low: -0.1, high: 0.1 }, false), Verdict::Undecided);
        assert_eq!(verdict_of(Interval { low: 0.0, high: 0.1 }, false), Verdict::Undecided);
    }

    #[test]
    fn where_test_and_interval_disagree_one_is_said_to_decide() {
        let difference =
            |low, high, verdict| Difference { before: 0.5, after: 0.55, interval: Interval { low, high }, verdict };
        let mut comparison = Comparison {
            before: "a".into(),
            after: "b".into(),
            n: 200,
            n_only_before: 0,
            n_only_after: 0,
            n_relabelled: 0,
            n_gained: 25,
            n_lost: 13,
            p_value: sign_test(25, 13),
            verdict: Verdict::Undecided,
            differences: [difference(0.005, 0.115, Verdict::Undecided); N_FIGURES],
            statement: String::new(),
        };
        let text = statement(&comparison);
        assert!(text.starts_with("No difference between `b` and `a` that these records can show:"), "{text}");
        assert!(text.contains("p = 0.073") && text.contains("from +0.5 to +11.5 points, leaves out 0"), "{text}");
        assert!(text.ends_with("of exact match the exact test decides."), "{text}");
        comparison.differences[EXACT_MATCH] = difference(-0.005, 0.115, Verdict::Undecided);
        let text = statement(&comparison);
        assert!(text.ends_with("The 95 % interval of the difference is from -0.5 to +11.5 points."), "{text}");
    }
}
