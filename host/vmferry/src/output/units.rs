//! Sizes and times for people.

use std::fmt;

/// A size in bytes, to three digits: `0 B`, `1.50 MiB`, `64.0 MiB`.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
        let mut size = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while size >= 999.5 && unit + 1 < UNITS.len() {
            size /= 1024.0;
            unit += 1;
        }
        let digits = match size {
            ..9.995 => 2,
            ..99.95 => 1,
            _ => 0,
        };
        f.pad(&format!("{size:.digits$} {}", UNITS[unit]))
    }
}

/// A time in seconds: `40 ms`, `1.2 s`, `2 min 5 s`, `1 h 3 min`.
pub struct Seconds(pub f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.0 < 0.9995 {
            format!("{:.0} ms", self.0.max(0.0) * 1000.0)
        } else if self.0 < 59.95 {
            format!("{:.1} s", self.0)
        } else {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive; no run takes 2^64 s")]
            let whole = self.0.round() as u64;
            match (whole / 3600, whole / 60 % 60, whole % 60) {
                (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
                (hours, minutes, _) => format!("{hours} h {minutes} min"),
            }
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let sizes = [0, 1023, 1024, 1536, 10 << 10, 64 << 20, 1023 << 20, 3 << 40, u64::MAX];
        let texts = sizes.map(|size| Size(size).to_string());
        assert_eq!(
            texts,
            ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "10.0 KiB", "64.0 MiB", "1.00 GiB", "3.00 TiB", "16384 PiB"]
        );
    }

    #[test]
    fn times_are_as_long_as_they_need_to_be() {
        let texts = [0.0, 0.0404, 0.9999, 59.9, 125.2, 3780.0].map(|seconds| Seconds(seconds).to_string());
        assert_eq!(texts, ["0 ms", "40 ms", "1.0 s", "59.9 s", "2 min 5 s", "1 h 3 min"]);
    }
}
