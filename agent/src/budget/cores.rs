//! CPU budgets as operators write them. Pure.

use std::{fs, path::Path};

/// Parses the value of `--budget.cpu` to cores; no limit is infinity.
///
/// # Errors
/// When it is none of millicores (`10m`), cores (`0.01`), a percentage of one core (`1%`) and `unlimited`.
pub fn parse(text: &str) -> Result<f64, String> {
    if text == "unlimited" {
        return Ok(f64::INFINITY);
    }
    let (digits, unit) = if let Some(digits) = text.strip_suffix('m') {
        (digits, 1e-3)
    } else if let Some(digits) = text.strip_suffix('%') {
        (digits, 1e-2)
    } else {
        (text, 1.0)
    };
    let number: f64 = digits.parse().map_err(|_| USAGE.to_owned())?;
    let cores = number * unit;
    if !(0.0..=1024.0).contains(&cores) {
        return Err(USAGE.to_owned());
    }
    Ok(cores)
}

/// Reads the value from a file.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read(path: &Path) -> Result<f64, String> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse(text.trim()).map_err(|usage| format!("{} holds no CPU budget: {usage}", path.display()))
}

const USAGE: &str = "give millicores (10m), cores (0.01), a percentage of one core (1%), or unlimited";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn millicores_cores_and_percent_mean_the_same() {
        for text in ["10m", "0.01", "1%"] {
            assert_eq!(parse(text), Ok(0.01), "{text}");
        }
        assert_eq!(parse("0"), Ok(0.0));
        assert_eq!(parse("unlimited"), Ok(f64::INFINITY));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "-1m", "10k", "nan", "inf", "ten", "2000", "1e9m%"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
