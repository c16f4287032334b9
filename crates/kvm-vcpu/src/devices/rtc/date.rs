//! Days and dates of the Gregorian calendar (algorithms of H. Hinnant, "chrono-Compatible Low-Level
//! Date Algorithms").

const DAY_S: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;
/// Days in 400 years.
const ERA_DAYS: i64 = 146_097;
/// The last second of the year 9999: four digits is all that the registers hold.
const LAST_S: i64 = 253_402_300_799;

/// A time of day, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Date {
    pub(super) year: u32,
    pub(super) month: u32,
    pub(super) day: u32,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
}

impl Date {
    /// From seconds since 1970; those before that, or after 9999, are the nearest there is.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let seconds = seconds.clamp(0, LAST_S);
        let days = seconds / DAY_S + EPOCH_DAYS;
        let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March on.
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let of_day = (seconds % DAY_S) as u32;
        Self {
            year: (era * 400 + year_of_era + i64::from(month <= 2)) as u32,
            month: month as u32,
            day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u32,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// Seconds since 1970; `None` if there is no such time, or it is before.
    pub(super) fn to_seconds(self) -> Option<i64> {
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let shifted = (i64::from(self.month) + 9) % 12;
        let day_of_year = (153 * shifted + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * ERA_DAYS + day_of_era - EPOCH_DAYS;
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60;
        let seconds = days * DAY_S + of_day + i64::from(self.second);
        // What does not come back as it was (a 31st of April, 61 minutes) is no date.
        (Self::from_seconds(seconds) == self).then_some(seconds)
    }
}

/// 1 is Sunday.
pub(super) fn weekday(seconds: i64) -> u32 {
    // 1970 began on a Thursday.
    ((seconds.clamp(0, LAST_S) / DAY_S + 4) % 7) as u32 + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates() {
        let date = |year, month, day| Date { year, month, day, hour: 0, minute: 0, second: 0 };
        for (seconds, expected, day) in [
            (0, date(1970, 1, 1), 5),
            (951_782_400, date(2000, 2, 29), 3),
            (4_107_542_400, date(2100, 3, 1), 2),
        ] {
            assert_eq!(Date::from_seconds(seconds), expected);
            assert_eq!(weekday(seconds), day);
        }
        assert_eq!(date(2100, 2, 29).to_seconds(), None);
        assert_eq!(date(2023, 13, 1).to_seconds(), None);
        assert_eq!(date(2023, 0, 1).to_seconds(), None);
        assert_eq!(date(1969, 12, 31).to_seconds(), None);
    }

    proptest! {
        #[test]
        fn every_second_has_its_date(seconds in 0..=LAST_S) {
            prop_assert_eq!(Date::from_seconds(seconds).to_seconds(), Some(seconds));
        }
    }
}
