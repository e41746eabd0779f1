//! Whether the codes that are used are those in force today.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Check;
use crate::codes::Edition;
use crate::text::civil_date;

/// A day of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

impl Date {
    /// The day of a moment, in UTC.
    pub fn of(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (year, month, day) = civil_date(seconds / 86_400);
        Self { year: year as u16, month: month as u8, day: day as u8 }
    }
}

/// The release that claims of a day are coded with: a fiscal year begins on 1 October, its update on 1 April.
pub fn edition_in_force(today: Date) -> Edition {
    let Date { year, month, .. } = today;
    match month {
        1..4 => Edition { year, is_april: false },
        4..10 => Edition { year, is_april: true },
        _ => Edition { year: year + 1, is_april: false },
    }
}

/// Whether the release in use is the one in force. `cache` is where fetched ones are kept.
pub fn check_release(used: Edition, today: Date, cache: Option<&Path>) -> Check {
    let in_force = edition_in_force(today);
    let name = "code release";
    if used >= in_force {
        return Check::ok(name, format!("{}, the one in force", used.title()));
    }
    let since = match in_force.is_april {
        true => format!("1 April {}", in_force.year),
        false => format!("1 October {}", in_force.year - 1),
    };
    let message = format!("{} is used; {} is in force since {since}", used.title(), in_force.title());
    let is_here = cache.is_some_and(|cache| in_force.file_in(cache).is_file());
    let hint = match is_here {
        true => format!("it is on this machine: give --release {in_force} to the commands that read codes"),
        false => format!("axismapper codes fetch --release {in_force}, then give --release {in_force} to the commands"),
    };
    Check::warning(name, message, hint)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::doctor::Status;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, year, month, day) in [
            (0, 1970, 1, 1),
            (951_782_400, 2000, 2, 29),
            (1_790_812_799, 2026, 9, 30),
            (1_790_812_800, 2026, 10, 1),
            (4_107_542_400, 2100, 3, 1),
        ] {
            assert_eq!(Date::of(UNIX_EPOCH + Duration::from_secs(seconds)), Date { year, month, day });
        }
    }

    #[test]
    fn a_fiscal_year_begins_in_october() {
        let on = |year, month| edition_in_force(Date { year, month, day: 1 }).to_string();
        assert_eq!([on(2026, 3), on(2026, 4), on(2026, 9)], ["2026", "2026-april", "2026-april"]);
        assert_eq!([on(2026, 10), on(2027, 1)], ["2027", "2027"]);
    }

    #[test]
    fn an_old_release_says_how_to_get_the_new_one() {
        let november = Date { year: 2026, month: 11, day: 25 };
        let check = check_release(Edition::BUILTIN, november, None);
        assert_eq!(check.status, Status::Warning);
        assert_eq!(check.message, "FY2026 April is used; FY2027 is in force since 1 October 2026");
        assert!(check.hint.unwrap().contains("axismapper codes fetch --release 2027"));
        let new = Edition { year: 2027, is_april: false };
        assert_eq!(check_release(new, november, None).status, Status::Ok);
        let dir = tempfile::tempdir().unwrap();
        let file = new.file_in(dir.path());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
        assert!(check_release(Edition::BUILTIN, november, Some(dir.path())).hint.unwrap().contains("on this machine"));
    }
}
