//! The mix for a continual update: every new record, and enough old ones that nothing is forgotten.

use super::Error;
use super::draw::Draw;

/// All of `new` with a share `ratio` (0 to 1) of `old`, shuffled; equal seeds give equal mixes.
///
/// # Errors
/// [`Error::BadSetting`] for a ratio out of range.
pub fn mix<T>(new: Vec<T>, mut old: Vec<T>, ratio: f64, seed: u64) -> Result<Vec<T>, Error> {
    super::error::check_setting("ratio", ratio, 0.0..=1.0)?;
    let mut draw = Draw::new(seed, "replay", 0);
    draw.shuffle(&mut old);
    old.truncate((ratio * old.len() as f64).round() as usize);
    let mut all = new;
    all.extend(old);
    draw.shuffle(&mut all);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_new_records_and_a_share_of_the_old_ones() {
        let mixed = mix((0..50).collect(), (100..300).collect(), 0.1, 3).unwrap();
        assert_eq!(mixed.len(), 70);
        assert!((0..50).all(|record| mixed.contains(&record)));
        assert_ne!(mixed[..50], (0..50).collect::<Vec<_>>());
        assert_eq!(mixed, mix((0..50).collect(), (100..300).collect(), 0.1, 3).unwrap());
        assert!(mix(vec![1], vec![2], 1.5, 0).is_err());
    }
}
