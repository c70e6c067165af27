//! Moments of the wall clock and their text form: RFC 3339 in UTC with nanoseconds, which sorts as it reads.

use crate::error::{Error, Result};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i128);

/// Bytes of a moment's text, `2026-11-26T01:25:27.123456789Z`.
pub(super) const TEXT: usize = 30;
const SECOND: i128 = 1_000_000_000;
const DAY: i64 = 86_400;

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment(since.as_nanos() as i128)
    }

    /// How long ago another moment was; nothing for one that is to come.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// So long before.
    pub fn before(self, span: Duration) -> Moment {
        Moment(self.0 - span.as_nanos() as i128)
    }

    /// The text, which is of the years 0 to 9999. Nothing is allocated.
    pub(super) fn text(self) -> [u8; TEXT] {
        let (seconds, nanos) = (self.0.div_euclid(SECOND) as i64, self.0.rem_euclid(SECOND) as u32);
        let (year, month, day) = date(seconds.div_euclid(DAY));
        let second = seconds.rem_euclid(DAY) as u32;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let parts = [
            (0, 4, year as u32),
            (5, 2, month),
            (8, 2, day),
            (11, 2, second / 3600),
            (14, 2, second / 60 % 60),
            (17, 2, second % 60),
            (20, 9, nanos),
        ];
        for (start, width, mut value) in parts {
            for place in text[start..start + width].iter_mut().rev() {
                *place = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        text
    }

    /// Reads a text as RFC 3339 has it: a date and a time, with a fraction or without, `Z` or an offset.
    pub fn parse(text: &[u8]) -> Option<Moment> {
        let number = |from: usize, width: usize| -> Option<i64> {
            let digits = text.get(from..from + width)?;
            let digit = |sum: i64, byte: &u8| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0'));
            digits.iter().try_fold(0, digit)
        };
        let within = |value: i64, low: i64, high: i64| (low..=high).contains(&value).then_some(value);
        let marks = [(4, b"--"), (7, b"--"), (10, b"Tt"), (13, b"::"), (16, b"::")];
        if !marks.iter().all(|(at, either)| text.get(*at).is_some_and(|byte| either.contains(byte))) {
            return None;
        }
        let (year, month, day) = (number(0, 4)?, within(number(5, 2)?, 1, 12)?, within(number(8, 2)?, 1, 31)?);
        let (hour, minute) = (within(number(11, 2)?, 0, 23)?, within(number(14, 2)?, 0, 59)?);
        let second = within(number(17, 2)?, 0, 60)?;
        let mut rest = 19;
        let mut nanos = 0;
        if text.get(rest) == Some(&b'.') {
            let digits = text[rest + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let known = number(rest + 1, digits.clamp(1, 9))?;
            nanos = known * 10_i64.pow(9 - digits.clamp(1, 9) as u32);
            rest += 1 + digits;
        }
        let offset = match text.get(rest..)? {
            b"Z" | b"z" => 0,
            [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
                let ahead = within(number(rest + 1, 2)?, 0, 23)? * 3600 + within(number(rest + 4, 2)?, 0, 59)? * 60;
                if *sign == b'-' { -ahead } else { ahead }
            }
            _ => return None,
        };
        let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset;
        Some(Moment(i128::from(seconds) * SECOND + i128::from(nanos)))
    }

    /// A moment as an option gives it: itself, or how long ago it was.
    ///
    /// # Errors
    /// `Spec` for what is neither.
    pub fn given(field: &str, text: &str) -> Result<Moment> {
        let neither = || {
            Error::spec(field, text, "neither a duration nor a time as RFC 3339 writes it")
                .or_try("10m, 1h30m or 2026-11-26T01:25:00Z")
        };
        match Moment::parse(text.as_bytes()) {
            Some(moment) => Ok(moment),
            None => {
                let span = crate::spec::text::duration(field, text).map_err(|_| neither())?;
                Ok(Moment::now().before(span))
            }
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or("?"))
    }
}

/// Days in the 400 years after which the calendar repeats itself.
const ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01: years that begin in March have their leap day at the end.
const EPOCH: i64 = 719_468;

/// Year, month and day of a day since 1970.
fn date(day: i64) -> (i64, u32, u32) {
    let day = day + EPOCH;
    let (era, day) = (day.div_euclid(ERA), day.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Of five months from March on, three have 31 days: 153 together.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month as u32, day as u32)
}

/// Days from 1970 to a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    era * ERA + year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1 - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<String> {
        Moment::parse(text.as_bytes()).map(|moment| moment.to_string())
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for text in ["1970-01-01T00:00:00.000000000Z", "2024-02-29T23:59:59.999999999Z", "2100-03-01T12:00:00.5Z"] {
            assert!(parsed(text).is_some_and(|shown| shown.starts_with(text.trim_end_matches('Z'))), "{text}");
        }
        assert_eq!(parsed("2026-11-26t01:25:27+01:30").as_deref(), Some("2026-11-25T23:55:27.000000000Z"));
        assert_eq!(
            parsed("2026-01-01T00:00:00.1234567891234-00:30").as_deref(),
            Some("2026-01-01T00:30:00.123456789Z")
        );
        for bad in
            ["", "now", "2026-13-01T00:00:00Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T24:00:00Z"]
        {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_moment_comes_back(seconds in -62_000_000_000_i64..250_000_000_000, nanos in 0_i64..1_000_000_000) {
            let moment = Moment(i128::from(seconds) * SECOND + i128::from(nanos));
            proptest::prop_assert_eq!(Moment::parse(&moment.text()), Some(moment));
        }

        #[test]
        fn strange_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
            let _ = Moment::parse(&bytes);
        }
    }
}
