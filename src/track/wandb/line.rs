//! What a run tells, line by line: figures, system metrics and console output, in the forms of the online streams and
//! of the records of a `.wandb` file.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::record::{History, Items, OutputRaw, Record, Stats, Step, Timestamp, items_of, pairs_of};

/// The longest piece of console output that is sent as one line.
const MAX_OUTPUT_CHARS: usize = 10_000;

/// Something with a place in one of a run's streams.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Line {
    /// A row of figures; `step` counts rows from 0, as W&B's `_step` does.
    History { step: u64, items: Items },
    /// System metrics, under names without `system.`.
    System { time: SystemTime, items: Items },
    /// One line of console output.
    Output { time: SystemTime, text: String },
}

impl Line {
    /// A row of figures under the names of transformers' `WandbCallback`, so that runs of both can share a chart.
    pub(super) fn history(
        step: u64,
        optimizer_step: u64,
        values: &Map<String, Value>,
        (time, runtime): (SystemTime, Duration),
    ) -> Self {
        let mut items: Items = values.iter().map(|(key, value)| (chart_name(key), value.to_string())).collect();
        items.push(("train/global_step".into(), optimizer_step.to_string()));
        items.push(("_step".into(), step.to_string()));
        items.push(("_timestamp".into(), seconds_text(since_epoch(time))));
        items.push(("_runtime".into(), seconds_text(runtime)));
        Self::History { step, items }
    }

    /// One line of console output, shortened when it is very long.
    pub(super) fn output(time: SystemTime, text: &str) -> Self {
        let text = text.trim_end_matches(['\n', '\r']).replace(['\n', '\r'], " ");
        Self::Output { time, text: text.chars().take(MAX_OUTPUT_CHARS).collect() }
    }

    /// The line as the online stream takes it, without its end. `start` is the start of the run.
    pub(super) fn stream_text(&self, start: SystemTime) -> String {
        match self {
            Self::History { items, .. } => object_text(items.iter().map(|(key, value)| (key.clone(), value.clone()))),
            Self::System { time, items } => {
                let named = items.iter().map(|(key, value)| (format!("system.{key}"), value.clone()));
                let runtime = time.duration_since(start).unwrap_or_default();
                object_text(named.chain([
                    ("_wandb".into(), "true".into()),
                    ("_timestamp".into(), seconds_text(since_epoch(*time))),
                    ("_runtime".into(), seconds_text(runtime)),
                ]))
            }
            Self::Output { time, text } => format!("{} {text}", iso_time(*time)),
        }
    }

    /// The line as a record, without its number.
    pub(super) fn to_record(&self) -> Record {
        match self {
            Self::History { step, items } => {
                let step = Some(Step { num: *step as i64 });
                Record { history: Some(History { item: items_of(items), step }), ..Record::default() }
            }
            Self::System { time, items } => {
                let stats = Stats { timestamp: Some(Timestamp::from(*time)), item: items_of(items) };
                Record { stats: Some(stats), ..Record::default() }
            }
            Self::Output { time, text } => {
                let timestamp = Some(Timestamp::from(*time));
                let output = OutputRaw { output_type: 0, timestamp, line: format!("{text}\n") };
                Record { output_raw: Some(output), ..Record::default() }
            }
        }
    }

    /// The line that a record holds, if it holds one.
    pub(super) fn of_record(record: &Record) -> Option<Self> {
        if let Some(history) = &record.history {
            let step = history.step.as_ref().map_or(0, |step| step.num.max(0) as u64);
            return Some(Self::History { step, items: pairs_of(&history.item) });
        }
        if let Some(Stats { timestamp: Some(time), item }) = &record.stats {
            return Some(Self::System { time: (*time).into(), items: pairs_of(item) });
        }
        if let Some(OutputRaw { timestamp: Some(time), line, .. }) = &record.output_raw {
            return Some(Self::Output { time: (*time).into(), text: line.trim_end_matches('\n').to_owned() });
        }
        None
    }
}

/// `loss` -> `train/loss`, `eval_loss` -> `eval/loss` (transformers 5.23, `integrations/integration_utils.py`,
/// `rewrite_logs`).
fn chart_name(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(rest) => format!("eval/{rest}"),
        None => format!("train/{name}"),
    }
}

/// An object's JSON text from keys and JSON texts.
pub(super) fn object_text(items: impl Iterator<Item = (String, String)>) -> String {
    let pair = |(key, value): (String, String)| format!("{}:{value}", Value::String(key));
    format!("{{{}}}", items.map(pair).collect::<Vec<_>>().join(","))
}

/// Seconds with their fraction, as JSON.
pub(super) fn seconds_text(duration: Duration) -> String {
    format!("{}.{:06}", duration.as_secs(), duration.subsec_micros())
}

/// The time since 1970.
pub(super) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// `2026-11-24T22:35:59.596904`, in UTC, as the streams write it.
pub(super) fn iso_time(time: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = calendar(time);
    let micros = since_epoch(time).subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}")
}

/// `20261124_223559`, in UTC, as folders of runs are named.
pub(super) fn folder_time(time: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = calendar(time);
    format!("{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
}

/// Year, month, day, hour, minute, second in UTC (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms",
/// `civil_from_days`).
fn calendar(time: SystemTime) -> [u64; 6] {
    let seconds = since_epoch(time).as_secs();
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    [year, month, day, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: u64, micros: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(seconds, micros * 1000)
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(iso_time(at(1_795_559_759, 596_904)), "2026-11-24T22:35:59.596904");
        assert_eq!(iso_time(at(951_827_696, 0)), "2000-02-29T12:34:56.000000");
        assert_eq!(iso_time(at(4_102_444_799, 1)), "2099-12-31T23:59:59.000001");
        assert_eq!(folder_time(at(0, 0)), "19700101_000000");
    }

    #[test]
    fn a_row_has_the_names_that_transformers_charts_under() {
        let values = json!({"epoch": 0.5, "loss": 0.1, "rewards/chosen": -2, "eval_loss": 1.5, "eval_f1": null});
        let time = (at(10, 5), Duration::from_millis(2500));
        let line = Line::history(3, 40, values.as_object().unwrap(), time);
        assert_eq!(
            line.stream_text(at(0, 0)),
            "{\"train/epoch\":0.5,\"train/loss\":0.1,\"train/rewards/chosen\":-2,\"eval/loss\":1.5,\"eval/f1\":null,\
             \"train/global_step\":40,\"_step\":3,\"_timestamp\":10.000005,\"_runtime\":2.500000}"
        );
    }

    #[test]
    fn a_line_comes_back_from_its_record_and_reads_as_the_stream_wants_it() {
        let lines = [
            Line::History { step: 7, items: vec![("train/loss".into(), "0.30000000000000004".into())] },
            Line::System { time: at(20, 0), items: vec![("cpu".into(), "1.5".into())] },
            Line::output(at(20, 1), "two\nlines\n"),
        ];
        for line in &lines {
            assert_eq!(Line::of_record(&line.to_record()).as_ref(), Some(line));
        }
        assert_eq!(
            lines[1].stream_text(at(5, 0)),
            "{\"system.cpu\":1.5,\"_wandb\":true,\"_timestamp\":20.000000,\"_runtime\":15.000000}"
        );
        assert_eq!(lines[2].stream_text(at(5, 0)), "1970-01-01T00:00:20.000001 two lines");
        assert_eq!(Line::of_record(&Record::default()), None);
    }
}
