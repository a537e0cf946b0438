//! Times in the formats that hosts print and read; pure.

#![warn(clippy::indexing_slicing)]

use crate::shell::answer::digits;
use crate::stat::Civil;
use crate::stat::Time;

/// Returns seconds with nine decimals, as GNU tools read and print them: -1.5 is 1.5 s before 1970.
pub fn epoch_text(time: Time) -> String {
    if time.secs < 0 && time.nanos > 0 {
        let (secs, nanos) = (-(time.secs + 1), 1_000_000_000 - time.nanos);
        format!("-{secs}.{nanos:09}")
    } else {
        format!("{}.{:09}", time.secs, time.nanos)
    }
}

/// Returns `2023-11-14 22:13:20.123456789 +0000`, as BusyBox prints a time in UTC.
pub fn civil_text(time: Time) -> String {
    let (date, clock) = date_and_clock(time);
    format!("{date} {clock}.{:09} +0000", time.nanos)
}

/// Returns `2023-11-14T22:13:20.123456789Z`, without the decimals if they are zero.
pub fn iso_text(time: Time) -> String {
    let (date, clock) = date_and_clock(time);
    let fraction = match time.nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}"),
    };
    format!("{date}T{clock}{fraction}Z")
}

/// Returns `202311142213.20`, in UTC.
pub fn compact_text(time: Time) -> String {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = time.civil();
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}.{second:02}")
}

/// Returns `2023-11-14` and `22:13:20`, in UTC.
fn date_and_clock(time: Time) -> (String, String) {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = time.civil();
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{hour:02}:{minute:02}:{second:02}"),
    )
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, yoe) = (year.div_euclid(400), year.rem_euclid(400));
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doy = (153 * mp + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Parses atime, mtime and ctime: as seconds with decimals, separated by spaces, or as civil times,
/// separated by bars.
pub(super) fn parse_times(text: &str) -> Option<[Time; 3]> {
    let (separator, parse): (char, fn(&str) -> Option<Time>) = if text.contains('|') {
        ('|', parse_civil)
    } else {
        (' ', parse_epoch)
    };
    let mut times = text.split(separator).map(parse);
    let all = [times.next()??, times.next()??, times.next()??];
    times.next().is_none().then_some(all)
}

/// Parses `1700000000.123456789`, or `-1.500000000` for 1.5 s before 1970.
pub(super) fn parse_epoch(text: &str) -> Option<Time> {
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (secs, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let secs: i64 = digits(secs)?.parse().ok()?;
    let nanos = parse_fraction(fraction)?;
    Some(match (is_negative, nanos) {
        (false, nanos) => Time { secs, nanos },
        (true, 0) => Time {
            secs: -secs,
            nanos: 0,
        },
        (true, nanos) => Time {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

/// Parses `2023-11-14 22:13:20.123456789 +0000`. The zone is not checked: resident shells run with
/// TZ=UTC0.
pub(super) fn parse_civil(text: &str) -> Option<Time> {
    let mut parts = text.split(' ');
    let (date, clock) = (parts.next()?, parts.next()?);
    let mut date = date
        .splitn(3, '-')
        .map(|part| digits(part)?.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock
        .splitn(3, ':')
        .map(|part| digits(part)?.parse::<i64>().ok());
    let (h, m, s) = (clock.next()??, clock.next()??, clock.next()??);
    let is_sane = (0..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && h < 24
        && m < 60
        && s <= 60;
    is_sane.then_some(())?;
    let secs = days_from_civil(year, month, day) * 86_400 + h * 3600 + m * 60 + s;
    Some(Time {
        secs,
        nanos: parse_fraction(fraction)?,
    })
}

/// Parses the decimals of a second. Digits after the ninth are ignored.
fn parse_fraction(text: &str) -> Option<u32> {
    let text = digits(text)?;
    let text = text.get(..9).unwrap_or(text);
    let scale = 10u32.checked_pow(9 - u32::try_from(text.len()).ok()?)?;
    Some(text.parse::<u32>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_the_host_prints_them() {
        for (secs, nanos, epoch, civil) in [
            (
                1_700_000_000,
                5,
                "1700000000.000000005",
                "2023-11-14 22:13:20.000000005 +0000",
            ),
            (
                -2,
                500_000_000,
                "-1.500000000",
                "1969-12-31 23:59:58.500000000 +0000",
            ),
            (
                951_782_400,
                0,
                "951782400.000000000",
                "2000-02-29 00:00:00.000000000 +0000",
            ),
        ] {
            let time = Time { secs, nanos };
            assert_eq!(
                (epoch_text(time).as_str(), civil_text(time).as_str()),
                (epoch, civil)
            );
            assert_eq!(
                (parse_epoch(epoch), parse_civil(civil)),
                (Some(time), Some(time))
            );
        }
    }
}
