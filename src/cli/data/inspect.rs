//! `axismapper data inspect`: what is in a file of records, with small plots.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::{ColumnArgs, ReleaseArgs};
use crate::cli::{write_indented_json, write_line};
use crate::data::inspect::{Distribution, Inspection, inspect};
use crate::data::source::Source;
use crate::diag::Failure;

/// Ranges of a plot of lengths.
const N_BINS: usize = 10;

/// Characters of the longest bar.
const BAR_CHARS: usize = 32;

/// Characters shown of a chapter's title.
const TITLE_CHARS: usize = 44;

/// Show what is in a file: counts, lengths, codes, chapters, sample records
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Records: scenario, chat or preference records, or a .csv or .tsv table; `-` is stdin
    #[arg(value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Number of sample records
    #[arg(long, value_name = "N", default_value_t = 5)]
    samples: usize,
    /// Equal seeds give equal samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let release = args.release.load()?;
    let source = Source { path: args.input.clone(), columns: args.columns.columns() };
    let found = inspect(&source, &release, args.samples, args.seed)?;
    if args.json { write_indented_json(out, &found) } else { describe(&found, release.name(), out) }
}

fn describe(found: &Inspection, release: &str, out: &mut dyn Write) -> Result<(), Failure> {
    write_line(out, &format!("{} records", found.n_records))?;
    if !found.registers.is_empty() {
        let registers: Vec<String> = found.registers.iter().map(|(name, n)| format!("{name} {n}")).collect();
        write_line(out, &format!("registers: {}; {} wording families", registers.join(", "), found.n_families))?;
    }
    if found.n_not_billable > 0 {
        let n = found.n_not_billable;
        write_line(
            out,
            &format!("{n} records with a code that is not billable in {release}; `data validate` drops them"),
        )?;
    }
    plot_lengths("words of a text", &found.words, out)?;
    plot_lengths("characters of a text", &found.chars, out)?;
    plot_lengths("codes of a record", &found.codes_per_record, out)?;

    write_line(
        out,
        &format!("\n{} of {} billable codes; how often one occurs", found.n_distinct_codes, found.n_billable),
    )?;
    let most = found.code_frequency.values().copied().max().unwrap_or(0);
    for (last, n) in &found.code_frequency {
        let first = if *last > 2 { last / 2 + 1 } else { *last };
        plot(&range(first, *last), *n, most, out)?;
    }
    write_line(out, "\nmost frequent codes")?;
    for frequent in &found.frequent {
        write_line(out, &format!("  {:<9} {:>7}  {}", frequent.code, frequent.n_records, frequent.description))?;
    }
    if !found.chapters.is_empty() {
        let n_covered = found.chapters.iter().filter(|chapter| chapter.n_codes > 0).count();
        write_line(
            out,
            &format!("\n{n_covered} of {} chapters; uses of codes, and codes that occur", found.chapters.len()),
        )?;
        let most = found.chapters.iter().map(|chapter| chapter.n_uses).max().unwrap_or(0);
        for chapter in &found.chapters {
            let title: String = chapter.title.chars().take(TITLE_CHARS).collect();
            let bar = bar(chapter.n_uses, most, BAR_CHARS / 2);
            let share = format!("{} of {}", chapter.n_codes, chapter.n_billable);
            let line =
                format!("  {:>2} {title:<TITLE_CHARS$} {:>7} {share:>15}  {bar}", chapter.number, chapter.n_uses);
            write_line(out, line.trim_end())?;
        }
    }
    if !found.samples.is_empty() {
        write_line(out, "\nsamples")?;
        for sample in &found.samples {
            write_line(out, &format!("  {}\n    -> {}", sample.scenario.replace('\n', " "), sample.codes.join(", ")))?;
        }
    }
    Ok(())
}

fn plot_lengths(title: &str, lengths: &Distribution, out: &mut dyn Write) -> Result<(), Failure> {
    let Distribution { min, median, p95, max, .. } = lengths;
    write_line(out, &format!("\n{title}: {min} to {max}, median {median}, 95 % at most {p95}"))?;
    let bins = lengths.bins(N_BINS);
    let most = bins.iter().map(|(_, _, n)| *n).max().unwrap_or(0);
    bins.into_iter().try_for_each(|(first, last, n)| plot(&range(first, last), n, most, out))
}

fn plot(label: &str, n: usize, most: usize, out: &mut dyn Write) -> Result<(), Failure> {
    write_line(out, format!("  {label:>11} {n:>8}  {}", bar(n, most, BAR_CHARS)).trim_end())
}

fn range(first: usize, last: usize) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// A bar in eighths of a character; what is there at all shows.
fn bar(n: usize, most: usize, width: usize) -> String {
    const EIGHTHS: [char; 8] =
        ['\u{258f}', '\u{258e}', '\u{258d}', '\u{258c}', '\u{258b}', '\u{258a}', '\u{2589}', '\u{2588}'];
    if n == 0 || most == 0 {
        return String::new();
    }
    let eighths = (n * width * 8).div_ceil(most);
    let mut bar = EIGHTHS[7].to_string().repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_proportion() {
        assert_eq!(bar(0, 8, 4), "");
        assert_eq!(bar(8, 8, 4), "\u{2588}".repeat(4));
        assert_eq!(bar(1, 1000, 4), "\u{258f}");
        assert_eq!(bar(5, 8, 1), "\u{258b}");
    }
}
